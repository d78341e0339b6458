r"""The answer in a model's text, and whether it is the right one.

    find_answer(r"Half of it, so the answer is $\dfrac12$ of a cake.") == r"\dfrac12"
    same(r"\dfrac12", "0.5") is True

Quantities (18, $1,000, 5 million, 7 apples) are compared here, as exact numbers, and words as
words. All else is LaTeX: the package math-verify reads it and says whether it is equal. What it
is known to misread is first written in another way, see REWRITES; the README has what remains.
"""
import logging
import re
from decimal import Decimal
from fractions import Fraction

try:
    import math_verify
except ImportError:
    math_verify = None
else:
    # That a comparison took too long is no news: it is a wrong answer.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

LONGEST = 300  # characters of an answer that is read; no right one is longer
SECONDS = 3  # for a step of math-verify, which would work on a tower of powers for ever

NUMBER = r"(?:(?<![\d)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"  # the minus of 5-3 is no sign
SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
SCALE = "|".join(SCALES)
# A word after a number is its unit, but for those that make another number of it.
NO_UNIT = (
    f"(?:{SCALE}|squared|cubed|factorial|half|halves|thirds|quarters|fourths|fifths|tenths"
    "|and|or|plus|minus|times|over|divided|less|more|pi|sqrt|sin|cos|tan|log|exp|mod)"
)
WORD_UNIT = rf"(?!{NO_UNIT}\b)(?:of\b|in\b|[A-Za-z]{{3}})"  # how such a word begins


# ------------------------------------------------------------------------------ find the answer
# After its answer a model may go on, and ask itself another question.
NEXT = re.compile(r"Question:|\n[ \t]*(?:Q|Problem):|</s>|<\|\w+\|>")
# What is between the boxes of one answer, as in "$\boxed{1}$ and $x = \boxed{2}$"; never much.
BETWEEN_BOXES = re.compile(
    r"[\s$]*(?:,|,?\s*(?:\\text\{\s*)?(?:and|or)\b\s*\}?)[\s$]*(?:\w\s*=\s*)?"
)


def find_answer(text):
    r"""The answer in a model's text, as a string, or None: from the first of these that is there.

    1. "final answer is $...$. I hope", the form of Minerva's examples
    2. the last \boxed{}, with those just before it: \boxed{1} and \boxed{2} is 1,2
    3. what follows "####", as in GSM8K
    4. what follows the last "answer is"
    5. the last number
    """
    text = with_plain_minus(NEXT.split(text, maxsplit=1)[0])
    closing = re.search(r"final answer is:?\s*\$([^$]+)\$\.?\s*I hope", text, re.IGNORECASE)
    if closing and "box" not in closing[1]:
        return closing[1].strip(" .\n") or None
    inside = boxed(text)
    if inside is not None:
        return inside or None
    marked = re.search(r"####\s*(.*)", text)
    said = re.split("answer is", text, flags=re.IGNORECASE)[1:]
    if marked and (not said or re.match(r"[-$\\(\[.\d]", marked[1])):  # and no "#### Step 1"
        return first_said(marked[1])
    if said:
        return first_said(said[-1])
    return last_number(text)


def with_plain_minus(text):
    """Every minus as "-", and right before its number where it is a sign, as in "#### - 18"."""
    text = re.sub("[\N{MINUS SIGN}\N{EN DASH}]", "-", text)
    return re.sub(r"(^|[=:#{(]|\bis\b)(\s*)-[ \t]+(?=[$\d.])", r"\1\2-", text)


def boxed(text):
    r"""What is in the last \boxed or \fbox of a text, and in those just before it, or None."""
    answers = []
    next_begin = None
    for box in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*", text))):
        end = end_of_group(text, box.end())
        if end is None:
            break
        if answers and not BETWEEN_BOXES.fullmatch(text[end:next_begin][:40]):
            break
        inside = text[box.end():end].removeprefix("{").removesuffix("}")
        answers.insert(0, inside.strip())
        next_begin = box.start()
    if not answers:
        return None
    return ",".join(dict.fromkeys(answers))


def end_of_group(text, begin):
    """Where the {...}, or else the word, that begins there ends; None if a brace stays open."""
    if not text.startswith("{", begin):
        return re.compile(r"[^\s$]*").match(text, begin).end()
    depth = 0
    for brace in re.compile("[{}]").finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return None


def first_said(said):
    """The answer in what follows "####" or "answer is": a formula, a quantity, or the sentence."""
    said = said.replace(r"\$", "")  # a dollar of money, in a formula
    said = re.sub(r"\\[()\[\]]", "$", said).strip(" \n\t:*")
    formula = re.match(r"\$+([^$]+)\$+(?!\s*(?:,|and\b|or\b)\s*\$)", said)
    if formula and said.count("$") % 2 == 0:  # but all of "$3$ and $7$", and of "$5"
        return formula[1].strip(" \n").rstrip(".")
    sentence = re.split(r"\n|\.(?=\s)", said, maxsplit=1)[0].rstrip(" *.,;")
    quantity = re.match(rf"({NUMBER})(?=\s+{WORD_UNIT}|\*|[,;:]\s|\s*[=(]|$)", sentence)
    if quantity:  # "5 bags of 3 apples", "18, since 20-2 is 18"
        return without_dollar(quantity[1])
    if re.match(r"[A-Za-z]{2,}\s", sentence) and re.search(r"\d", sentence):  # "that she has 5"
        return last_number(sentence)
    return sentence.replace("$", "").strip() or None


def last_number(text):
    found = re.findall(NUMBER, text)
    if not found:
        return None
    return without_dollar(found[-1])


def without_dollar(number):
    return number.replace("$", "").rstrip(",")


# ------------------------------------------------------------------------------ compare answers
TEXT = re.compile(r"\\(?:text\w*|mbox|hbox|mathrm)\s*\{([^{}]*)\}")
QUANTITY = re.compile(
    r"(-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+))"  # the number
    rf"(?:\s*({SCALE})s?\b)?"
    rf"(?:\s*%|(?:\s+{WORD_UNIT}[A-Za-z .'/-]*|\s*(?:[cmk]m|kg|m[lL]|mph|ft|lbs?))"
    r"(?:\s*\^\s*\{?[23]\}?)?|\s*\([A-Za-z .'/-]+\))?"  # its unit
)
HALF_OF_DAY = re.compile(r"(?<=\d)(?::00)?\s*([ap])\.?\s?m\b\.?$", re.IGNORECASE)
BASE = re.compile(r"(?<=\d)_\{?(\d+)\}?$")
LIST_COMMA = re.compile(r"\d,(?:\s+\d|(?!\s|\d{3}(?!\d)))")  # not that of 1,000

# (what math-verify would read as is said beside it, how it is written for it)
REWRITES = (
    # 5 \text{ cm}: 5 times cm. Its own list of units, by which 4t is 4, is turned off in parse.
    (rf"(?<=[\d)}}!i])\s*(?:\\[,;: ]\s*)?(?!\\\w+\s*\{{\s*(?:{SCALE}))"
     rf"(?:\s*/?\s*{TEXT.pattern})+(?:\s*\^\s*\{{?[23]\}}?)?\.?$", ""),
    (r"\^\s*\{?\s*(?:\\\w+\s*\{)?\s*(?:st|nd|rd|th)\s*\}*", ""),  # 12^{th}: 12 to the power of th
    (r"(?<=\d)(?:st|nd|rd|th)\b", ""),  # 12th: 12 times th
    (r"\\degree|°", ""),  # 30\degree: no formula
    (r"(?<=\d)\\,(?=\d{3})", ""),  # 10\,000: ten times nothing
    (r"(?<![\d.])(\d+)\s+(\d+)/(\d+)", r"\1\\frac{\2}{\3}"),  # 1 1/2: a half of 11
    (r"\\frac\s*(\\[a-z]+)", r"\\frac{\1}"),  # \frac\pi2: no formula
    (r"(?<![a-zA-Z_\\])i(?![a-zA-Z])", "{I}"),  # 2i: a letter, and not the imaginary unit
    (r"\\text\s*\{([A-Z](?:,\s*[A-Z])+)\}", r"\1"),  # \text{A,B}: a word, and no list
)


def same(answer, reference):
    """Whether an answer (a string, or None for no answer) is the reference answer.

    ValueError if that takes math-verify, and it is not installed; see needs_math_verify.
    """
    if answer is None or len(answer) > LONGEST:
        return False
    answer, half = without_half_of_day(with_plain_minus(answer))
    reference, right_half = without_half_of_day(with_plain_minus(reference))
    if half and right_half and half != right_half:
        return False
    if answer.strip() == reference.strip():
        return answer.strip() != ""
    quantity = as_quantity(answer)
    right_quantity = as_quantity(reference)
    if quantity is not None and right_quantity is not None:
        return quantity == right_quantity
    word = as_word(answer)
    right_word = as_word(reference)
    if word and right_word:  # math-verify takes letters for factors: stop is post
        return word == right_word
    if math_verify is None and not needs_math_verify(reference):
        return False
    return same_latex(answer, reference)


def needs_math_verify(reference):
    """Whether answers cannot be compared with this one without math-verify."""
    reference = without_half_of_day(with_plain_minus(reference))[0]
    return as_quantity(reference) is None and as_word(reference) is None


def without_half_of_day(text):
    r"""("6", "p") of 6:00\text{ p.m.}; (text, None) of what is no time of the day."""
    plain = TEXT.sub(r"\1", text).strip()
    found = HALF_OF_DAY.search(plain)
    if not found:
        return text, None
    return plain[:found.start()], found[1].lower()


def as_quantity(text):
    """The number in "18", "$1,000.50", "5 million", "7 apples", "13 (pens)" or "20%", a Fraction.

    None of anything else. Units and the percent sign are not looked at.
    """
    text = TEXT.sub(r" \1", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!)\s*(?=\d{3})", ",", text)  # 10{,}000
    text = re.sub(r"\\?\$|[£€*]", "", text).replace(r"\%", "%")
    found = QUANTITY.fullmatch(text.strip().rstrip("."))
    if not found:
        return None
    number = found[1].replace(",", "").rstrip(".")
    return Fraction(number) * SCALES.get(found[2], 1)


def as_word(text):
    r"""A word in lower case: "evelyn" of \text{Evelyn}, "b" of (B); None of a formula."""
    plain = TEXT.sub(r"\1", text).strip(" .()*$")
    if not re.fullmatch(r"[A-Za-z][A-Za-z .'-]*", plain):
        return None
    if TEXT.search(text) or len(plain) > 2 or re.fullmatch("[A-Z]", plain):  # xy is a product
        return plain.casefold()
    return None


def same_latex(answer, reference):
    """Whether math-verify finds the two equal. ValueError if it is not installed."""
    if math_verify is None:
        raise ValueError(f"The answer {reference} takes math-verify to compare with: "
                         "pip install math-verify")
    if BASE.findall(answer) != BASE.findall(reference):  # math-verify drops the base of 52_8
        return False
    is_list = LIST_COMMA.search(answer) or LIST_COMMA.search(reference)
    parsed_answer = parse(answer, is_list)
    parsed_reference = parse(reference, is_list)
    return math_verify.verify(parsed_reference, parsed_answer, allow_set_relation_comp=True,
                              timeout_seconds=SECONDS)


def parse(text, is_list):
    """What math-verify makes of an answer: its readings, for math_verify.verify."""
    number = as_quantity(text)
    if is_list:  # 100,200 is a number, but not beside 200,5
        text = re.sub(r"(?<=\d),(?=\d)", ", ", text)
    elif number is not None:  # 5 million and 7 apples are no formulas
        text = format(Decimal(number.numerator) / Decimal(number.denominator), "f")
    for pattern, new in REWRITES:
        text = re.sub(pattern, new, text)
    normalization = math_verify.LatexNormalizationConfig(
        basic_latex=True, malformed_operators=True, nits=True, units=False)
    latex = math_verify.LatexExtractionConfig(normalization_config=normalization)
    return math_verify.parse(rf"\boxed{{{text}}}", [latex], parsing_timeout=SECONDS)


def grade(completion, reference):
    """(the answer in a model's text or None, whether it is the reference answer)."""
    answer = find_answer(completion)
    return answer, same(answer, reference)
