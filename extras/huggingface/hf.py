"""Models, tokenizers and datasets in the layout of Hugging Face: in and out.

    python extras/huggingface/hf.py import FOLDER out/base --block_size 1024
    python extras/huggingface/hf.py export out/slm FOLDER
    python extras/huggingface/hf.py corpus DATASET --out corpus/mine
    python extras/huggingface/hf.py tokenizer FOLDER NEW_FOLDER

FOLDER is on this machine. Only `corpus` downloads, where DATASET is a name on the hub.
"""
import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import hub_corpus  # noqa: E402 (the path first)
import llama_weights  # noqa: E402
from tiktoken_to_json import tokenizer_json  # noqa: E402

import common  # noqa: E402
import data  # noqa: E402
import files  # noqa: E402

# What the folders have in them that these commands make, see files.check_place.
CHECKPOINT = ("ckpt.pt", "per_token")
EXPORTED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
             "merges.txt", "added_tokens.json", "tokenizer.model", "chat_template.jinja")


def say(text):
    print(files.printable(text))


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------ models
def import_model(args):
    """A pretrained model becomes a checkpoint, for --init_from and --ref."""
    config = llama_weights.read_config(args.folder, args.block_size)
    identity = identity_of(args.tokenizer or args.folder, config.vocab_size)
    if args.tokenizer:
        refuse_plain_ids(identity, args.tokenizer)
    inputs = [args.folder, args.tokenizer or args.folder]
    with files.new_folder(args.out, CHECKPOINT, args.overwrite, inputs) as part:
        state = llama_weights.read_weights(args.folder, config, getattr(torch, args.dtype))
        common.save_checkpoint(part / "ckpt.pt", model=state, optimizer={}, step=0, args={},
                               config=vars(config), tokenizer=identity, corpus="")
    n_parameters = sum(t.numel() for t in state.values())
    if config.tie_embeddings:
        n_parameters -= state["head.weight"].numel()
    say(f"{args.out}: {n_parameters / 1e6:.1f}M parameters in {args.dtype}, "
        f"block size {config.block_size}, vocabulary {config.vocab_size:,}")
    if identity["name"] == "ids":
        say("Without a tokenizer.json it is a model of plain token ids, for corpora of "
            f"make_corpus.py --ids with --vocab_size {config.vocab_size}. If transformers reads "
            "its tokenizer, hf.py tokenizer makes a tokenizer.json, for --tokenizer here.")
    else:
        say(f"Its corpora need data.py --tokenizer {identity['name']}, its runs --init_from "
            f"{args.out} --block_size {config.block_size}.")


def identity_of(folder, vocab_size):
    """What a checkpoint says of its tokenizer. ValueError if it has ids that the model lacks."""
    if not (Path(folder) / "tokenizer.json").is_file():
        return {"name": "ids", "sha256": f"{vocab_size} ids"}
    enc = data.get_tokenizer(folder)
    if max(enc.n_vocab, enc.eot_token + 1) > vocab_size:
        raise ValueError(f"The tokenizer in {folder} has ids up to {enc.n_vocab - 1}, and the "
                         f"model a vocabulary of {vocab_size}.")
    return data.tokenizer_id(enc)


def refuse_plain_ids(identity, folder):
    if identity["name"] == "ids":
        raise ValueError(f"{folder} has no tokenizer.json; hf.py tokenizer makes one.")


def export_model(args):
    """A checkpoint becomes a folder that transformers, lm-evaluation-harness and vLLM read."""
    ckpt = common.load_checkpoint(args.ckpt)
    model = common.load_model(args.ckpt, ckpt=ckpt)
    llama_weights.refuse_what_is_no_llama(model, args.ckpt)
    enc = tokenizer_to_export(ckpt, model.config.vocab_size, args)
    eos = enc.eot_token if enc else None
    inputs = [args.ckpt, args.tokenizer or args.ckpt]
    with files.new_folder(args.folder, EXPORTED, args.overwrite, inputs) as part:
        config = llama_weights.their_config(model.config, args.dtype, eos)
        write_json(part / "config.json", config)
        write_json(part / "generation_config.json", {"eos_token_id": eos})
        llama_weights.write_weights(part, model, getattr(torch, args.dtype))
        if enc:
            write_tokenizer(part, enc, model.config.block_size)
    say(f"{args.folder}: {', '.join(sorted(p.name for p in Path(args.folder).iterdir()))}")
    if enc is None:
        say("There is no tokenizer.json, as the model was trained on plain token ids: with "
            "--tokenizer FOLDER, that of the one which made them is added.")


def tokenizer_to_export(ckpt, vocab_size, args):
    """The tokenizer of a checkpoint, or that of --tokenizer if it fits; None for plain ids."""
    plain_ids = ckpt["tokenizer"].get("name") == "ids"
    if args.tokenizer is None and plain_ids:
        return None
    if args.tokenizer is None:
        enc = data.tokenizer_of(ckpt["tokenizer"], args.ckpt)
        if enc.n_vocab > vocab_size:
            raise ValueError(f"{args.ckpt} has a smaller vocabulary than its tokenizer: they do "
                             "not belong together.")
        return enc
    identity = identity_of(args.tokenizer, vocab_size)
    refuse_plain_ids(identity, args.tokenizer)
    if not plain_ids and identity["sha256"] != ckpt["tokenizer"]["sha256"]:
        raise ValueError(f"{args.ckpt} was made with another tokenizer than {args.tokenizer} has.")
    return data.get_tokenizer(args.tokenizer)


def write_tokenizer(folder, enc, block_size):
    """Write tokenizer.json and tokenizer_config.json, which give the ids that training had.

    So nothing is put around a text, though a folder's own post_processor may do that.
    """
    if isinstance(enc, data.TokenizerFolder):
        content = llama_weights.read_json(Path(enc.name) / "tokenizer.json")
        content |= {"truncation": None, "padding": None, "post_processor": None}
        eos = enc.tokenizer.id_to_token(enc.eot_token)
    else:
        content = tokenizer_json(enc)
        eos = "<|endoftext|>"
    write_json(folder / "tokenizer.json", content)
    write_json(folder / "tokenizer_config.json", {
        # A class that reads tokenizer.json as it is: others build their tokenizer anew.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    })


# ------------------------------------------------------------------------------ texts
def convert_tokenizer(args):
    """The tokenizer of a folder, of whatever kind, becomes a folder with tokenizer.json."""
    try:
        import transformers
    except ImportError:
        raise ValueError("This needs a package: pip install transformers") from None
    with files.new_folder(args.out, TOKENIZER, args.overwrite, [args.folder]) as part:
        try:
            folder = Path(args.folder).resolve(strict=True)  # a name of the hub would be downloaded
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                                   trust_remote_code=False)
            tokenizer.save_pretrained(part)
        except BaseException as e:  # many kinds, by the tokenizer; some are no Exception
            if isinstance(e, KeyboardInterrupt):
                raise
            raise ValueError(f"transformers cannot read the tokenizer in {args.folder} "
                             f"({hub_corpus.in_short(e)}). For a SentencePiece model: pip install "
                             "sentencepiece protobuf") from None
        if not (part / "tokenizer.json").is_file():
            raise ValueError(f"transformers makes no tokenizer.json of that in {args.folder}: make "
                             "arrays of ids with its own library, for make_corpus.py --ids.")
        enc = data.get_tokenizer(part)
    say(f"{args.out}: {enc.n_vocab:,} tokens, of which {enc.eot_token} ends a document")


def make_corpus(args):
    """A dataset becomes a corpus."""
    inputs = [name for name in (args.dataset, args.tokenizer) if Path(name).exists()]
    files.check_place(args.out, data.corpus_names(args.out), args.overwrite, inputs)
    enc = data.get_tokenizer(args.tokenizer)
    rows = hub_corpus.open_dataset(args.dataset, args.config, args.split)
    documents = hub_corpus.documents(rows, enc, args)
    made_by = {name: value for name, value in vars(args).items() if name != "run"}
    meta = data.write_corpus(args.out, documents, data.tokenizer_id(enc), enc.n_vocab, made_by,
                             overwrite=args.overwrite, inputs=inputs)
    data.report(args.out, meta)


# ------------------------------------------------------------------------------ the command
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="import|export|corpus|tokenizer")

    def command(name, run):
        sub = commands.add_parser(name, description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--overwrite", action="store_true", help="replace what is there")
        return sub.add_argument

    flag = command("import", import_model)
    flag("folder", help="config.json, *.safetensors, tokenizer.json")
    flag("out", help="run folder to write")
    flag("--block_size", type=data.count,
         help="T, tokens in a window (default: the longest that the model can, at most 2048)")
    flag("--tokenizer", metavar="FOLDER", help="folder of its tokenizer.json, if it is another")
    flag("--dtype", choices=("float32", "bfloat16"), default="float32",
         help="of the weights in the file; training has them in float32 (default float32)")

    flag = command("export", export_model)
    flag("ckpt", help="run folder or checkpoint")
    flag("folder", help="folder to write")
    flag("--tokenizer", metavar="FOLDER", help="its tokenizer, if it has moved or the run has none")
    flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default float32)")

    flag = command("corpus", make_corpus)
    flag("dataset", help="a name on the hub, or a folder of parquet, JSON lines or text")
    flag("--out", required=True, help="corpus folder to write")
    flag("--config", help="the dataset's configuration, if it has several")
    flag("--split", default="train", help="its split (default train)")
    flag("--field", default="text", help="the field of a row that is its text (default text)")
    flag("--template", nargs="+", type=data.template_flag, default=[],
         help="how a row becomes text, as in data.py")
    flag("--max_unfit", type=data.share_or_0, default=0.01,
         help="share of the rows that may be unfit, and are left out (default 0.01)")
    flag("--tokenizer", default="embedded", help="as in data.py (default embedded)")
    flag("--max_tokens", type=data.count, help="training tokens to take at most (K, M, B allowed)")
    flag("--val_share", type=data.share, default=0.01,
         help="share of the documents that is held out (default 0.01)")

    flag = command("tokenizer", convert_tokenizer)
    flag("folder", help="a tokenizer that transformers reads")
    flag("out", help="folder to write")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    files.replace_what_stdout_lacks()
    try:
        main()
    except (ValueError, OSError, KeyboardInterrupt) as e:
        sys.exit(files.printable(f"hf.py: {str(e) or 'interrupted'}"))
