r"""The answer in a model's text, and whether it is the right one.

    find_answer(r"Half of it, so the answer is $\dfrac12$ of a cake.") == r"\dfrac12"
    same(r"\dfrac12", "0.5") is True

Quantities (18, $1,000, 5 million, 1 1/2 cups, 6 p.m.) are compared here, as exact numbers, and
words as words. All else is LaTeX: the package math-verify reads it and says whether it is equal.
What it is known to misread is first written in another way, see REWRITES; the README has what
remains.
"""
import logging
import re
import signal
from decimal import Decimal
from fractions import Fraction

from quantities import (
    NO_UNIT,
    SCALE,
    TEXT,
    TEXT_COMMAND,
    as_quantity,
    is_unit,
    minutes_of_day,
    same_minutes,
    same_quantity,
)

try:
    import math_verify
    from math_verify.errors import TimeoutException
except ImportError:
    math_verify = None
else:
    # That a comparison took too long is no news: it is a wrong answer.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

LONGEST = 300  # characters of an answer that is read; no right one is longer
SECONDS = 1  # for a step of math-verify, which would work on a tower of powers for ever
HAS_TIMER = hasattr(signal, "setitimer")  # not on Windows: math-verify has a slower one there
ROUNDING = 12  # digits after the point of a decimal; its own 6 make 1.4142136 the root of 2
DIGITS = 50  # of all other numbers; its own 15 make 10^{-20} nothing

# The minus of 5-3 is no sign. common.NUMBER allows a space in "- 3" too; here with_plain_minus has
# taken it away before.
NUMBER = r"(?:(?<![\d)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


# ------------------------------------------------------------------------------ find the answer
# After its answer a model may go on, and ask itself another question.
NEXT = re.compile(r"Question:|\n[ \t]*(?:Q|Problem):|</s>|<\|\w+\|>")
# What is between the boxes of one answer, as in "$\boxed{1}$ and $x = \boxed{2}$"; never much.
BETWEEN_BOXES = re.compile(
    r"[\s$]*(?:,|,?\s*(?:\\text\{\s*)?(?:and|or)\b\s*\}?)[\s$]*(?:\w\s*=\s*)?"
)
# "9 eggs * $2 per egg = " before its result; not "2x + y = ", which is an equation.
TERM = rf"\(*{NUMBER}%?(?:\s+[A-Za-z]{{2,}}\b){{0,2}}\)*\s*"
CALCULATION = rf"(?:{TERM}(?:[-+*/×÷=]|x(?=\s*\$?\d)|of\b)\s*)*{TERM}=\s*"
# A number, and what may come after one that is the answer: "5 bags of 3 apples", "42 as shown",
# "3 a day", "18, since 20-2 is 18", "18 = 20-2". "5 and 7" or "5 million" is more than its number.
FIRST_NUMBER = re.compile(
    rf"(?:{CALCULATION})?({NUMBER})"
    rf"(?=\s+(?!{NO_UNIT}\b)(?:[A-Za-z]{{2}}|a\s[A-Za-z]{{2}})|\*|[,;:]\s|\s*[=(]|$)"
)


def find_answer(text):
    r"""The answer in a model's text, as a string, or None: from the first of these that is there.

    1. "final answer is $...$. I hope", the form of Minerva's examples
    2. the last \boxed{}, with those just before it: \boxed{1} and \boxed{2} is 1,2
    3. what follows the last "####" that has a number or a formula after it, as in GSM8K
    4. what follows the last "answer is" or "answer:"
    5. what follows "####" in the last line: elsewhere words are a heading, "#### Step 1"
    6. the last number
    7. the first line
    """
    text = with_plain_minus(NEXT.split(text, maxsplit=1)[0])
    minerva = re.search(r"final answer is:?\s*\$([^$]+)\$\.?\s*I hope", text, re.IGNORECASE)
    if minerva and "box" not in minerva[1]:
        return minerva[1].strip(" .\n") or None
    inside = boxed(text)
    if inside is not None:
        return inside or None
    after_hashes = [part.strip() for part in text.split("####")[1:]]
    for part in reversed(after_hashes):
        if re.match(r"[-$\\(\[.\d]", part):
            return first_said(part)
    said = re.split(r"answer is|answer:", text, flags=re.IGNORECASE)[1:]
    if said:
        return first_said(said[-1])
    if after_hashes and after_hashes[-1] and "\n" not in after_hashes[-1]:
        return first_said(after_hashes[-1])
    return last_number(text) or text.strip().split("\n")[0].strip(" *#.") or None


def with_plain_minus(text):
    """Every minus as "-", and right before its number where it is a sign, as in "#### - 18"."""
    text = re.sub("[\N{MINUS SIGN}\N{EN DASH}\N{FIGURE DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}"
                  "\N{FULLWIDTH HYPHEN-MINUS}\N{SMALL HYPHEN-MINUS}]", "-", text)
    text = re.sub(r"(^|[\s=:#{(])\N{EM DASH}(?=[$\d.\\])", r"\1-", text)  # else it is a dash
    text = text.replace("{-}", "-")
    return re.sub(r"(^|[=:#{(,]|\bis\b)(\s*)(?:-|negative\b|minus\b)\s+(?=[$\d.\\])", r"\1\2-",
                  text, flags=re.IGNORECASE)


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
    r"""The answer in what follows "####" or "answer is".

    $\frac12$ of it          -> \frac12
    18 dollars. She had 20.  -> 18 dollars
    5 x 3 = 15 apples.       -> 15
    that she has 12.         -> 12
    Evelyn. It is her.       -> Evelyn
    """
    said = said.replace(r"\$", "")  # a dollar of money, in a formula
    said = re.sub(r"\\[()\[\]]", "$", said).strip(" \n\t:*")
    # The formula, but all of "$3$ and $7$", and none in "$5. She had $6", where no $ closes it.
    formula = re.match(r"\$+([^$]+)\$+(?!\d)(?!\s*(?:,|and\b|or\b)\s*\$)", said)
    if formula and said.count("$") % 2 == 0:
        return formula[1].strip(" \n").rstrip(".")
    sentence = re.split(r"\n|\.(?=\s)", said, maxsplit=1)[0].rstrip(" *.,;")
    number = FIRST_NUMBER.match(sentence)
    if number:
        unit = re.match(r" (?:(?:square|cubic|sq|cu) )?[A-Za-z]+", sentence[number.end():])
        if unit and is_unit(unit[0].strip()):
            return without_dollar(number[1]) + unit[0]
        return without_dollar(number[1])
    if re.match(r"[A-Za-z]{2,}\s", sentence) and re.search(r"\d", sentence):
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
BASE = re.compile(r"(?<=\d)_\{?(\d+)\}?$")
LIST_COMMA = re.compile(r"\d,(?:\s+\d|(?!\s|\d{3}(?!\d)))")  # not that of 1,000
SIGNS = {  # of plain text, and how LaTeX has them
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∞": r"\infty ", "∪": r"\cup ", "π": r"\pi ", "θ": r"\theta ", "±": r"\pm ", "≈": "",
    "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "°": r"^\circ ", r"\degree": r"^\circ ",
    "~": " ", "\N{NO-BREAK SPACE}": " ", "\N{THIN SPACE}": " ", "\N{NARROW NO-BREAK SPACE}": " ",
}

UNIT_TEXT = TEXT_COMMAND + r"\{[^{}0-9]*\}"  # \text{ cm}, and no \text{5 cm}
# (what math-verify would misread as is said beside it, how it is written for it). No rule needs
# another one before it.
REWRITES = (
    # 5 \text{ cm}: 5 times cm. Its own list of units, by which 4t is 4, is turned off in parse.
    (rf"(?<=[\d)}}!i])\s*(?:\\[,;: ]\s*)?(?!\\\w+\s*\{{\s*{SCALE}s?\b)"
     rf"(?:\s*/?\s*{UNIT_TEXT})+(?:\s*\^\s*\{{?[23]\}}?)?\.?$", ""),
    (r"\^\s*\{?\s*(?:\\\w+\s*\{)?\s*(?:st|nd|rd|th)\s*\}*", ""),  # 12^{th}: 12 to the power of th
    (r"(?<=\d)(?:st|nd|rd|th)\b", ""),  # 12th: 12 times th
    (r"\\?(sin|cos|tan)\s*\(?\s*(\d+)\s*\^\s*\{?\s*\\circ\s*\}?\s*\)?",
     r"\\\1(\\frac{\2\\pi}{180})"),  # \sin 30^\circ: the sine of 30 radians
    (r"(?<=\d)\\,(?=\d{3})", ""),  # 10\,000: ten times nothing
    (r"(?<![\d.])(\d+)\s+(\d+)/(\d+)", r"\1\\frac{\2}{\3}"),  # 1 1/2: a half of 11
    (r"\\frac\s*(\\[a-z]+)", r"\\frac{\1}"),  # \frac\pi2: no formula
    (r"(?<![a-zA-Z_\\])i(?![a-zA-Z])", "{I}"),  # 2i: a letter, and not the imaginary unit
    (r"\\text\s*\{([A-Z](?:,\s*[A-Z])+)\}", r"\1"),  # \text{A,B}: a word, and no list
    (r"√\s*(\w+)", r"\\sqrt{\1}"),  # √12: no formula
    (r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln|pi)(?![A-Za-z])", r"\\\1"),  # s i n
    (r"\*\*", "^"),  # x**2: no formula
    (r"(?:\\left\s*)?\\langle", "("), (r"(?:\\right\s*)?\\rangle", ")"),  # no vector
    (r"^\s*[A-Z]\s*(?=(?:\\left\s*)?\([^()]*,)", ""),  # A(1,2): A times the point
    (r"^\s*\\approx", ""),  # \approx 5: no formula
    (r"(?<=\d)\s*(?:\\text\{ ?to ?\}|to)\s*(?=\d)", ":"),  # 3 to 4: the letters t and o
    (r"(\d*)\.(\d*)\\overline\s*\{(\d+)\}",  # 0.\overline{3}: no formula
     lambda found: repeating(*found.groups())),
)


def same(answer, reference):
    """Whether an answer (a string, or None for no answer) is the reference answer.

    ValueError if that takes math-verify, and it is not installed; see needs_math_verify.
    """
    if answer is None or len(answer) > LONGEST or len(reference) > LONGEST:
        return False
    answer = plain(answer)
    reference = plain(reference)
    if answer == reference:
        return answer != ""
    same_time = same_minutes(answer, reference)
    if same_time is not None:
        return same_time
    quantity = as_quantity(answer)
    right_quantity = as_quantity(reference)
    if quantity and right_quantity:
        return same_quantity(quantity, right_quantity)
    word = as_word(answer)
    right_word = as_word(reference)
    if word and right_word:  # math-verify takes letters for factors: stop is post
        return word == right_word
    choice = re.match(r"\(?([A-J])[).:]", TEXT.sub(r"\1", answer))
    if choice and re.fullmatch("[a-j]", right_word or ""):  # "(B) 7" beside "B"
        return choice[1].lower() == right_word
    values = named_values(answer)
    right_values = named_values(reference)
    if values or right_values:
        return same_named(values or elements(answer), right_values or elements(reference))
    if math_verify is None and not needs_math_verify(reference):
        return False
    return same_latex(answer, reference)


def needs_math_verify(reference):
    """Whether answers cannot be compared with this one without math-verify."""
    reference = plain(reference)
    known = as_quantity(reference) or as_word(reference) or minutes_of_day(reference)
    return known is None


def plain(text):
    """The text with the signs that LaTeX has, and without what surrounds a formula."""
    for sign, latex in SIGNS.items():
        text = text.replace(sign, latex)
    text = with_plain_minus(text).strip()
    formula = re.fullmatch(r"\$([^$]+)\$|\\\((.+)\\\)", text)
    if formula:
        text = formula[1] or formula[2]
    return re.sub(r"\s*(?:o'clock|\\)$", "", text)


def repeating(whole, once, again):
    r"""0.1\overline{6} as a fraction in LaTeX: its parts are "0", "1" and "6"."""
    nines = 10 ** len(once + again) - 10 ** len(once)
    return in_latex(Fraction(int(whole + once + again) - int(whole + once or 0), nines))


def in_latex(number):
    """A Fraction as a whole number, a decimal if it ends, or a fraction."""
    if number.denominator == 1:
        return str(number.numerator)
    if 10**25 % number.denominator == 0:
        return format(Decimal(number.numerator) / Decimal(number.denominator), "f")
    return rf"\frac{{{number.numerator}}}{{{number.denominator}}}"


# ------------------------------------------------------------------------------ words, named values
def as_word(text):
    r"""A word in lower case: "evelyn" of \text{Evelyn}, "b" of (B); None of a formula."""
    bare = TEXT.sub(r"\1", text).strip(" .()*$")
    if not re.fullmatch(r"[^\W\d_][^\W\d_ .'-]*(?:[ .'-]+[^\W\d_]+)*", bare):
        return None
    if TEXT.search(text) or len(bare) > 2 or re.fullmatch("[A-Z]", bare):  # xy is a product
        return bare.casefold()
    return None


def named_values(text):
    """{name: value} of "x=1, y=2"; None of anything else, and of "x=1, x=2", which is a list."""
    text = re.sub(r"\\(?:begin|end)\{cases\}", "", text)
    name = r"(?:[A-Za-z]\w*|\\[a-z]+)(?:_\{\w+\})?"
    space = r"(?:[\s$]|\\[ ,;]|\\q?quad)"
    comma = rf"\s*(?:,|;|\\\\|\band\b|\\text\{{\s*,?\s*and\s*\}}|\s){space}*(?={name}\s*=)"
    values = {}
    for part in re.split(comma, text):
        found = re.fullmatch(rf"\s*({name})\s*=([^=<>]+)", part)
        if not found or found[1] in values:
            return None
        values[found[1]] = found[2].strip(" $,.")
    return values if len(values) > 1 else None


def elements(text):
    r"""The parts of "(1, \frac12)" or "1, 2", between commas that are in no bracket."""
    inside = re.fullmatch(r"(?:\\left)?\s*\((.*?)(?:\\right)?\s*\)", text)
    parts = [""]
    depth = 0
    for c in inside[1] if inside else text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def same_named(values, right_values):
    """Whether named values are the same: {name: value}, or a list in the order of the names."""
    if isinstance(values, dict) and isinstance(right_values, dict):
        if values.keys() != right_values.keys():
            return False
        return all(same(value, right_values[name]) for name, value in values.items())
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(right_values, dict):
        right_values = list(right_values.values())
    return len(values) == len(right_values) and all(map(same, values, right_values))


# ------------------------------------------------------------------------------ formulas
AT_MOST = r"(?:<|\\leq?(?:slant)?(?![a-z])|\\lt(?![a-z]))"
AT_LEAST = r"(?:>|\\geq?(?:slant)?(?![a-z])|\\gt(?![a-z]))"


def same_latex(answer, reference):
    """Whether math-verify finds the two equal. ValueError if it is not installed."""
    if math_verify is None:
        raise ValueError(f"The answer {reference} takes math-verify to compare with: "
                         "pip install math-verify")
    if HAS_TIMER:  # it counts the work of this process, and not the time that others take
        before = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)
    try:
        return differ_by_a_factor(answer, reference) or equal_latex(answer, reference)
    except TimeoutException:
        return False
    finally:
        if HAS_TIMER:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)


def stop(number, frame):
    raise TimeoutException


def equal_latex(answer, reference):
    """What math-verify says of two answers, each written as it reads them best."""
    if BASE.findall(answer) != BASE.findall(reference):  # math-verify drops the base of 52_8
        return False
    is_list = LIST_COMMA.search(answer) or LIST_COMMA.search(reference)
    parsed_answer = parse(answer, is_list)
    parsed_reference = parse(reference, is_list)
    return math_verify.verify(parsed_reference, parsed_answer, allow_set_relation_comp=True,
                              float_rounding=ROUNDING, numeric_precision=DIGITS,
                              timeout_seconds=None if HAS_TIMER else SECONDS)


def differ_by_a_factor(answer, reference):
    """Whether two equations, or inequalities, are one: x = 5 and 2x = 10, x < 5 and -x > -5.

    math-verify takes x = 5 for the number 5 where the other has no letter alone on its left.
    """
    differences = []
    signs = []
    for text in (answer, reference):
        parts = re.split(f"({AT_MOST}|{AT_LEAST}|=)", text)
        if len(parts) != 3:
            return False
        left, sign, right = parts
        if re.match(AT_LEAST, sign):  # the other way round
            left, right = right, left
        parsed = parse(f"({left})-({right})", is_list=False)
        if not parsed or not getattr(parsed[0], "free_symbols", None):
            return False
        differences.append(parsed[0])
        if sign != "=":
            sign = "<" if is_strict(sign) else "<="
        signs.append(sign)
    if signs[0] != signs[1]:
        return False
    try:
        factor = (differences[0] / differences[1]).doit().simplify()
    except Exception:  # sympy raises many kinds
        return False
    return bool(factor.is_number and factor.is_nonzero and (signs[0] == "=" or factor.is_positive))


def parse(text, is_list):
    """What math-verify makes of an answer: its readings, for math_verify.verify."""
    quantity = as_quantity(text)
    if is_list:  # 100,200 is a number, but not beside 200,5
        text = re.sub(r"(?<=\d),(?=\d)", ", ", text)
    elif quantity:  # 5 million and 7 apples are no formulas
        text = in_latex(quantity.number)
    text = rewritten(as_union(text))
    normalization = math_verify.LatexNormalizationConfig(
        basic_latex=True, malformed_operators=True, nits=True, units=False)
    latex = math_verify.LatexExtractionConfig(normalization_config=normalization)
    timeout = None if HAS_TIMER else SECONDS
    return math_verify.parse(rf"\boxed{{{text}}}", [latex], parsing_timeout=timeout)


def rewritten(text):
    """The text, but for what math-verify would misread."""
    for pattern, new in REWRITES:
        text = re.sub(pattern, new, text)
    return text


def as_union(text):
    r"""x < 1 \text{ or } x \ge 2 as (-\infty, 1) \cup [2, \infty), and with "and" as one interval.

    Anything else as it is.
    """
    plainly = re.sub(r"\\(?:text|mbox)\s*\{\s*(or|and)\s*\}", r" \1 ", text)
    parts = re.split(r"\b(or|and)\b", plainly)
    words = set(parts[1::2])
    intervals = [as_interval(part) for part in parts[::2]]
    if len(words) != 1 or None in intervals:
        return text
    if words == {"or"}:
        return r" \cup ".join(f"{begin}, {end}" for begin, end in intervals)
    begins = [begin for begin, _ in intervals if begin != r"(-\infty"]
    ends = [end for _, end in intervals if end != r"\infty)"]
    if len(begins) != 1 or len(ends) != 1:
        return text
    return f"{begins[0]}, {ends[0]}"


def as_interval(text):
    """("[3", "7)") of 3 <= x < 7, of an inequality of one letter and one or two bounds, or None."""
    below = re.fullmatch(rf"\s*([a-z])\s*({AT_MOST})(.+)|(.+?)({AT_LEAST})\s*([a-z])\s*", text)
    if below:
        bound = below[3] or below[4]
        return r"(-\infty", bound + closing(below[2] or below[5])
    above = re.fullmatch(rf"\s*([a-z])\s*({AT_LEAST})(.+)|(.+?)({AT_MOST})\s*([a-z])\s*", text)
    if above:
        bound = above[3] or above[4]
        return opening(above[2] or above[5]) + bound, r"\infty)"
    between = re.fullmatch(rf"(.+?)({AT_MOST})\s*[a-z]\s*({AT_MOST})(.+)", text)
    if between:
        begin, first, second, end = between.groups()
        return opening(first) + begin, end + closing(second)
    return None


def opening(sign):
    return "(" if is_strict(sign) else "["


def closing(sign):
    return ")" if is_strict(sign) else "]"


def is_strict(sign):
    return re.fullmatch(r"[<>]|\\[lg]t", sign) is not None
