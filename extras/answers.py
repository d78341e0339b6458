r"""The answer in a model's text, and whether it is the reference answer: GSM8K's numbers by score.py's rules, MATH's LaTeX by those here.

    grade(r"Half of it, so the answer is $\dfrac12$.", r"\frac{1}{2}") == (r"\dfrac12", True)

Of the answers that RHO-1, ToRA, Abel and GSM8K's authors published, it gives the scores they published: GSM8K within 0.4 points, MATH
(RHO-1's 500 problems) within 0.8, mostly upwards, since it reads some matrices, units and letters that their evaluation did not.
"""
import functools
import itertools
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from score import NUMBER, extract_answer, same_answer

# ----------------------------------------------------------------------------- the answer in a text
NEXT = re.compile(r"Question:|\n[ \t]*(?:Q|Problem):|</s>|<\|\w+\|>")  # after its answer a model may go on and ask itself a question
NOUN = r"(?!(?:pi|sqrt|and|or|sin|cos|tan|log|sec|csc|cot|exp)\b)(?:of\b|in\b|[A-Za-z]{3})"  # how the words after a number begin

def boxed(text):
    r"""What is in the last \boxed or \fbox of a text, braces matched; None if there is none, or it does not end."""
    found = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if found < 0:
        return None
    inside, depth = text[found:].split("box", 1)[1].removeprefix("ed").lstrip(), 0
    if not inside.startswith("{"):
        return re.match(r"[^\s$]*", inside)[0]  # \boxed 5
    for i, c in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(c, 0)
        if depth == 0:
            return inside[1:i]

def math_answer(text):
    """The answer in a model's text, as a string, or None: what "final answer is $...$. I hope" holds (Minerva's form, which without the
    dollar signs is no answer, as in the evaluation of RHO-1), else the last box, else the number after "####", else what follows the
    last "answer is", else the last number."""
    text = NEXT.split(text, maxsplit=1)[0].replace("\N{MINUS SIGN}", "-")
    parts = re.split("answer is", text, flags=re.IGNORECASE)
    closings = [b.partition("I hope")[0] for a, b in zip(parts, parts[1:]) if a[-6:].casefold() == "final " and "I hope" in b]
    marked = re.search(r"####[\s$]*(.*)", text)
    if closings and re.search(r"[$\\]", closings[0]):
        said = closings[0]
    elif (inside := boxed(text)) is not None:
        return inside.strip() or None
    elif closings:
        return None
    elif marked and ("\\" in marked[1] or marked[1].startswith(("(", "["))):  # LaTeX, which the core does not read
        said = marked[1]
    elif len(parts) == 1 or marked and re.match(NUMBER, marked[1]):
        return extract_answer(text)
    else:
        said = parts[-1]
    said = re.sub(r"(?<!\\)\\[()\[\]$]", "", said).strip(" \n\t:*")
    if (inside := boxed(said)) is not None:
        return inside.strip() or None
    said = re.split(r"\n|\.(?=\s)", said, maxsplit=1)[0].strip("* ")  # its first sentence
    found = re.match(r"\$+([^$]+)\$+(?!\s*(?:,|and\b|or\b)\s*\$)", said)
    if found and said.count("$") % 2 == 0:  # $\frac{1}{2}$ of the cake; but all of $3$ and $7$, and of $5 + $6 = $11
        said = found[1]
    elif found := re.match(rf"({NUMBER})\s+{NOUN}", said):  # 5 bags of 3 apples
        said = found[1]
    elif re.match(r"[A-Za-z]{2,}\s", said) and re.search(r"\d", said):  # about 5
        return extract_answer(said)
    return said.replace("$", "").strip(" *").rstrip(" *.,;") or None

# ----------------------------------------------------------------------------- one way to write it
VALUE = r"(?<=[\d)}π!])"  # what a unit may follow
REWRITE = [(re.compile(pattern), new) for pattern, new in (
    (r"(?<=\{)\s+|\s+(?=\})", ""), (r"[\u2212\u2013]", "-"),
    (r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|pi|text|cdot|times|left|right|infty|circ|pm|leq?|geq?|cup|in|theta)(?![a-z]))", r"\\"),  # escaped twice
    (r"(?<!\\)\\[()\[\]]|\\?[$%]|\*\*|£|€|\\displaystyle|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[!,]", ""), (r"(?<!\\)\\[;: ]|\\q?quad(?![a-z])|~", " "),
    (r"\\[dtc]frac", r"\\frac"), (r"\\(?:math(?:bf|bb|cal|it)|bold(?:symbol)?|bf)(?![a-z])", ""),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|°", ""),
    (r",?\s*(?:\\(?:text\w*|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)", ","),
    (r"(?<=[^\s{_^(\[,=&<>/])\s*/?\s*\\(?:text\w*|mbox|hbox|mathrm)\s*\{[^{}]*\}(?:\s*\^\s*\{?[23]\}?)?", ""),  # a unit
    (r"\\(?:text\w*|mbox|hbox|mathrm|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r"\\leq?(?:slant)?(?![a-z])|<=", "≤"), (r"\\geq?(?:slant)?(?![a-z])|>=", "≥"), (r"\\lt(?![a-z])", "<"), (r"\\gt(?![a-z])", ">"),
    (r"\\in(?![a-z])", "∈"), (r"\\(?:big)?cup(?![a-z])", "∪"), (r"\\pm(?![a-z])", "±"), (r"\+?(?:\\infty(?![a-z])|\binfinity|∞)", "∞"),
    (r"\\pi(?![a-z])|\bpi\b", "π"), (r"\\(?:cdot|times|ast)(?![a-z])|×|·", "*"), (r"\\div(?![a-z])|÷", "/"), (r"\\sqrt(?![a-z])|\bsqrt\b", "√"),
    (r"\\(?:\{|lbrace)", "⦃"), (r"\\(?:\}|rbrace)", "⦄"),
    (rf"{VALUE}(?:\s+{NOUN}[A-Za-z .'/,-]*|\s*(?:[cmk]m|kg|m[lL]|mph|ft|[ap]m|lbs?))(?:\s*\^\s*\{{?[23]\}}?)?$", ""),  # 5 apples, 5cm^2
    (r"(?<![\w.^{}_)])(\d+)\s*(?:\\frac\s*\{(\d+)\}\s*\{(\d+)\}|\\frac\s*(\d)\s*(\d)|\s(\d+)/(\d+))",  # a mixed number
     lambda m: "({}+{}/{})".format(*filter(None, m.groups()))),
    (r"\\(?:begin|end)\s*\{(?:array|[bpBV]?matrix)\}(?:\{[lcr|]*\})?", lambda m: "]" if "end" in m[0] else "["),  # a matrix: [1,2;3,4]
    (r"\s+", ""), (r"&", ","), (r"\\\\", ";"), (r";\]", "]"), (r"\{(\w)\}(?!\w)", r"\1"), (r"[.,;:]+$", ""), (r"^\(-∞,∞\)$|^allrealnumbers$", "R"))]
LONGEST = 300  # characters of an answer that is looked into; a longer one is compared as it is, so that none takes long

def normal(answer, thousands=True):
    """An answer without what does not change it: units, spaces, dollar and percent signs, the many ways to write one thing in LaTeX."""
    text = re.sub(r",\s*\\!\s*|\{,\}", ",", answer.strip())  # 10,\!000 and 10{,}000
    text = re.sub(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)", lambda m: m[0].replace(",", ""), text) if thousands else text
    for pattern, new in REWRITE:
        text = pattern.sub(new, text)
    return text

# ----------------------------------------------------------------------------- equal, though written differently
class Expression:
    """The value of an expression of numbers, single letters, + - * / ^, brackets, roots and \\frac, each letter standing for some fixed
    number and i for the imaginary unit. A reader of its own, in floating point, so that a model's text is never run as code and no power
    takes long. ValueError or ArithmeticError if the text is anything else."""
    def __init__(self, text, shift):
        self.text, self.at, self.shift = text, 0, shift
        self.value = self.sum()
        if self.at < len(text) or re.search(r"[A-Za-z]{4}", text.replace(r"\frac", "")):  # a word is no product of its letters
            raise ValueError("not an expression")

    def take(self, pattern):
        found = re.compile(pattern).match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found and found[0]

    def sum(self):
        total, sign = 0, self.take(r"[+-]") or "+"
        while sign:
            total, sign = total + self.product() * (-1 if sign == "-" else 1), self.take(r"[+-]")
        return total

    def product(self):
        value = self.power()
        while (sign := self.take(r"[*/]")) or re.match(r"[\w.({√\\]", self.text[self.at:self.at + 1]):  # 2x is a product too
            value = value / self.power() if sign == "/" else value * self.power()
        return value

    def power(self):
        sign, value = -1 if self.take("-") else 1, self.atom()
        return sign * (value ** self.power() if self.take(r"\^") else value)

    def atom(self, digits=r"\d+\.?\d*|\.\d+"):
        if found := self.take(digits):
            return complex(float(found))
        found = self.take(r"\\frac|[({\[√a-zA-Zπ]") or "nothing"
        if found in "({[":
            value = self.sum()
            if not self.take(re.escape({"(": ")", "{": "}", "[": "]"}[found])):
                raise ValueError("a bracket is open")
            return value
        if found == r"\frac":
            return self.atom(r"\d") / self.atom(r"\d")
        if found == "√":
            root = self.atom() if self.text.startswith("[", self.at) else 2
            return self.atom(r"\d+") ** (1 / root)
        if found == "nothing":
            raise ValueError("not an expression")
        return {"π": math.pi, "i": 1j}.get(found) or complex(1 + (ord(found) * 0.6180339887 + self.shift) % 1)

@functools.lru_cache(maxsize=4096)
def values(text):
    """The values of an expression for two choices of its letters, or None."""
    try:
        return [Expression(text, shift).value for shift in (0.0, 0.3)]
    except (ValueError, ArithmeticError, RecursionError):
        return None

def close(a, b):
    """Whether two expressions are equal: whole numbers exactly, others as far as floating point can tell. A decimal as the reference b
    has been rounded, so 1e-4 of it is allowed, as in the evaluation of RHO-1."""
    if all(re.fullmatch(r"-?\d+", n) for n in (a, b)):
        return same_answer(a, b)
    tolerance, x, y = 1e-4 if re.search(r"\.\d", b) else 1e-9, values(a), values(b)
    return bool(x and y) and all(abs(p - q) <= tolerance * abs(q) for p, q in zip(x, y))

OPEN, CLOSE, TURNED = "([{⦃", ")]}⦄", str.maketrans("<>≤≥", "><≥≤")
NAME = re.compile(r"^(?:[A-Za-z](?:_?\w|_\{\w+\})?'?|[A-Za-z]{3,}|\\[a-z]+[A-Z]*|[A-Za-z](?:\^\{-1\})?\([a-z]\)|\([a-z](?:,[a-z])+\))[=∈](?=.)")

def depths(text):
    """After each character of a text, how many brackets are open."""
    return list(itertools.accumulate((c in OPEN) - (c in CLOSE) for c in text))

def split(text, signs):
    """The parts of a text between those of the signs that are in no bracket, and these: "(1,2),3" -> ["(1,2)", "3"], [","]."""
    cuts = [i for i, (c, depth) in enumerate(zip(text, depths(text))) if depth == 0 and c in signs]
    return [text[i + 1:j] for i, j in zip([-1, *cuts], [*cuts, len(text)])], [text[i] for i in cuts]

def elements(text):
    """(brackets, elements, the signs between them) of a tuple, interval or matrix; of a set, a list or one value ("", elements, [])."""
    closed = depths(text)
    if text and text[0] in OPEN and 0 in closed and closed.index(0) == len(text) - 1:  # and not (x+1)(x-1)
        parts, signs = split(text[1:-1], ",;")
        if signs and text[0] in "([":
            return text[0] + text[-1], parts, signs
        text = text[1:-1]
    return "", [part.replace("±", sign) for part in split(text, ",;")[0] for sign in ("+-" if "±" in part else "+")], []

def same(a, b):
    """Whether two normal answers are equal, b being the reference."""
    if a == b:
        return a != ""
    (xs, found), (ys, other) = split(a, "="), split(b, "=")
    if len(xs) == len(ys) == 2 and any(close(f"({xs[0]})-({xs[1]})", f"({y})-({z})") for y, z in (ys, ys[::-1])):  # x+y=3 is 3-x=y
        return True
    bare = NAME.sub("", a), NAME.sub("", b)  # x=3 is 3
    if bare != (a, b):
        return same(*bare)
    (kind, xs, signs), (other, ys, other_signs) = elements(a), elements(b)
    if kind != other or len(xs) != len(ys) or signs != other_signs or len(xs) > 30:
        return False
    if kind:
        return all(map(same, xs, ys))
    if len(xs) == 1:
        return same_value(xs[0], ys[0])
    for x in xs:  # in any order
        found = next((i for i, y in enumerate(ys) if same(x, y)), None)
        if found is None:
            return False
        del ys[found]
    return True

def same_value(a, b):
    """The same, for what is no list: a union of intervals, an inequality, a word, an expression."""
    if a == b or a.isalpha() and b.isalpha():
        return a.casefold() == b.casefold() != ""
    for signs in "∪", "=<>≤≥":
        (xs, found), (ys, other) = split(a, signs), split(b, signs)
        if found and found == other:
            return all(map(same, xs, ys))
        if found and found == [sign.translate(TURNED) for sign in other[::-1]]:  # x<3 is 3>x
            return all(map(same, xs, ys[::-1]))
        if set(found) == {"="} and not other and all(close(x, xs[-1]) for x in xs):  # 3+4=7
            return same(xs[-1], b)
        if found or other:
            return False
    return close(a, b)

def same_math(a, b):
    """Whether the answer a is the reference b: as score.same_answer, or as LaTeX. None equals nothing."""
    if a is None or b is None or max(len(a), len(b)) > LONGEST:
        return a == b is not None
    try:  # 100,200 is a number or a list
        return any(same(normal(a, thousands), normal(b, thousands)) for thousands in (True, False))
    except RecursionError:
        return False

def grade(completion, reference):
    """(the answer in a completion or None, whether it is the reference answer)."""
    answer = math_answer(completion)
    return answer, same_math(answer, str(reference))
