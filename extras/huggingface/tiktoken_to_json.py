"""A tiktoken.Encoding, such as the embedded tokenizer, as a tokenizer.json with the same ids."""
import re

# The letter that stands for each byte in a tokenizer.json: itself if it can be seen, else one from
# 256 on (Radford et al. 2019, in the code of GPT-2).
SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
UNSEEN = [byte for byte in range(256) if byte not in SEEN]
LETTER = {byte: chr(byte) for byte in SEEN}
LETTER |= {byte: chr(256 + i) for i, byte in enumerate(UNSEEN)}


def letters(token):
    return "".join(LETTER[byte] for byte in token)


def merges_of(ranks):
    """The merges of a byte-pair encoding, first to last, from its {token: rank}.

    tiktoken merges the two neighbours that make the token of the lowest rank, whatever they are, so
    every way to make a token from two is listed, in the order of the tokens.
    """
    merges = []
    for token in sorted(ranks, key=ranks.get):
        for i in range(1, len(token)):
            if token[:i] in ranks and token[i:] in ranks:
                merges.append((token[:i], token[i:]))
    return merges


def tokenizer_json(enc):
    """The content of tokenizer.json, as an object."""
    # After {1,3} a + means "and never less" to tiktoken, and "once more" to the other engine.
    pattern = re.sub(r"(\{\d+,\d*\})\+", r"\1", enc._pat_str)
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    special_tokens = [
        {"id": i, "content": name, "special": True, "normalized": False,
         "single_word": False, "lstrip": False, "rstrip": False}
        for name, i in sorted(enc._special_tokens.items(), key=lambda item: item[1])
    ]
    vocab = {letters(token): rank for token, rank in enc._mergeable_ranks.items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special_tokens,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # as tiktoken, which looks a whole piece up first
            "vocab": vocab | enc._special_tokens,
            "merges": [f"{letters(a)} {letters(b)}" for a, b in merges_of(enc._mergeable_ranks)],
        },
    }
