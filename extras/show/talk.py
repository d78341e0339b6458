"""Continue a text with a trained model.

    python extras/show/talk.py --prompt "Question: Tom has 3 pens and buys 4 more. How many now?"
    python extras/show/talk.py --temperature 0.8    # asks for one text after another

A question that stands alone gets an "Answer:", as the questions of the toy world have.
"""
import argparse
import sys

import torch
from pages import open_model  # first: it finds the core

import common
import files
from data import count


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--ckpt", default="out/slm", help="run folder or checkpoint (default out/slm)")
    flag("--prompt", help="the text to continue (default: it is asked for)")
    flag("--max_new_tokens", type=count, default=100, help="tokens to add at most (default 100)")
    flag("--temperature", type=float, default=0.0,
         help="0 takes the likeliest token, 1 draws as the model predicts (default 0)")
    flag("--seed", type=int, default=0, help="of the draws (default 0)")
    flag("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
         help="auto is bfloat16 on CUDA, float32 elsewhere")
    args = parser.parse_args()
    if args.temperature != 0 and not 1e-3 <= args.temperature <= 1e3:
        raise ValueError(f"--temperature must be 0, or from 0.001 to 1000, not {args.temperature}.")
    if not 0 <= args.seed < 2**63:
        raise ValueError("--seed must be 0 or more, and below 2^63.")
    return args


def continue_text(model, enc, text, max_new_tokens, temperature):
    """The text and up to max_new_tokens more, or fewer if the model ends it. ValueError if it does
    not fit in the model's block.
    """
    if text.startswith("Question:") and "Answer:" not in text:
        text += "\nAnswer:"
    idx = torch.tensor([enc.encode_ordinary(text)], device=model.embed.weight.device)
    length = idx.shape[1]
    if not 0 < length < model.config.block_size:
        raise ValueError(f"The text has {length} tokens; it may have from 1 to "
                         f"{model.config.block_size - 1}.")
    idx = model.generate(idx, max_new_tokens, temperature, stop=enc.eot_token)
    return text + common.decode(enc, idx[0, length:].tolist())


def main():
    sys.excepthook = common.say_what_is_wrong
    files.replace_what_stdout_lacks()
    args = parse_args()
    model, enc, _ = open_model(args.ckpt, args)
    torch.manual_seed(args.seed)
    if args.prompt is not None:
        text = continue_text(model, enc, args.prompt, args.max_new_tokens, args.temperature)
        print(files.printable(text))
        return
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            text = continue_text(model, enc, text, args.max_new_tokens, args.temperature)
        except ValueError as e:
            text = str(e)
        print(files.printable(text))


if __name__ == "__main__":
    main()
