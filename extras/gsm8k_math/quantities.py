r"""Quantities and times of day in the answers of models: read as exact numbers, and compared.

    as_quantity(r"1\frac12 \text{ cups}") == (Fraction(3, 2), "cups")
    same_quantity(as_quantity("1 hour"), as_quantity("60 minutes")) is True
    minutes_of_day("6 p.m.") == {1080}
"""
import re
from fractions import Fraction
from typing import NamedTuple

TEXT_COMMAND = r"\\(?:text\w*|mbox|hbox|mathrm)\s*"
TEXT = re.compile(TEXT_COMMAND + r"\{([^{}]*)\}")
SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "lakh": 10**5,
    "mil": 10**6,
    "million": 10**6,
    "crore": 10**7,
    "bn": 10**9,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
}
SCALE_LETTERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}  # 5 m are metres
SCALE = f"(?:(?i:{'|'.join(SCALES)})|[{''.join(SCALE_LETTERS)}])"
# A word after a number is its unit, but for those that make another number, or a time, of it.
NO_UNIT = (
    f"(?i:{'|'.join(SCALES)}|squared|cubed|factorial|half|halves|thirds?|quarters?|fourths?|fifths?"
    "|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|ones|tens|and|or|plus"
    "|minus|times|over|divided|less|more|to|pi|sqrt|sin|cos|tan|log|ln|exp|mod"
    "|am|pm|noon|midnight|in the (?:morning|afternoon|evening))"
)
WORD_UNIT = rf"(?!{NO_UNIT}\b)(?:of\b|in\b|[A-Za-z]{{3}})"  # how such a word begins


# ------------------------------------------------------------------------------ times of the day
HALF = re.compile(r"(?<=\d )[ap]m\b")  # of the day
CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?: ([ap]m)(?: [a-z ]+)?)?")  # "6 pm sharp"


def same_minutes(answer, reference):
    """Whether two times of day are equal; None unless both are such, and one has its half."""
    answer = with_am_and_pm(answer)
    reference = with_am_and_pm(reference)
    half = HALF.search(answer)
    right_half = HALF.search(reference)
    if not half and not right_half:
        return None
    minutes = minutes_of_day(answer)
    right_minutes = minutes_of_day(reference)
    if minutes and right_minutes:
        return bool(minutes & right_minutes)
    if half and right_half and half[0] != right_half[0]:
        return False  # "about 6 a.m."
    return None


def minutes_of_day(text):
    r"""The minutes since midnight that "6 p.m." or "6:30" may be, or None.

    They are two where it may be morning or evening.
    """
    found = CLOCK.fullmatch(with_am_and_pm(text))
    if not found:
        return None
    hour = int(found[1])
    minutes = int(found[2] or 0)
    if hour > 24 or minutes > 59:
        return None
    if not found[3] and (hour > 12 or hour == 0):
        return {hour % 24 * 60 + minutes}
    morning = hour % 12 * 60 + minutes
    evening = morning + 720
    return {"am": {morning}, "pm": {evening}}.get(found[3], {morning, evening})


def with_am_and_pm(text):
    """The text in lower case without LaTeX, and its halves of the day as "6 am" and "12 pm"."""
    text = re.sub(r"\\[,;:! ]|\\q?quad", " ", TEXT.sub(r" \1", text)).lower()
    text = re.sub(r"\s*\bin the (morning|afternoon|evening)\b", day_half, text)
    text = re.sub(r"(?<=\d)\s*([ap])\.?\s?m\b\.?", r" \1m", text)
    text = re.sub(r"(?:\b12(?::00)?\s*)?\b(noon|midnight)\b", day_half, text)
    return re.sub(r"\s+", " ", text).strip(" .")


def day_half(found):
    """What re.sub puts in the place of a name of a time of the day."""
    return {"morning": " am", "noon": "12 pm", "midnight": "12 am"}.get(found[1], " pm")


# ------------------------------------------------------------------------------ quantities
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
        "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
        "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORD = re.compile(
    rf"(?:(?P<ten>{'|'.join(TENS)})(?:[- ](?={'|'.join(ONES[1:10])})|\b))?"
    rf"(?P<one>{'|'.join(sorted(ONES, key=len, reverse=True))})?\b", re.IGNORECASE)
CURRENCIES = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee"}
MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september",
          "october", "november", "december"]
# {kind: {names: how many of the first}}. Two units of one kind are converted, of two kinds differ.
UNIT_KINDS = {
    "time": {"s sec second": 1, "min minute": 60, "h hr hour": 3600, "day": 86400, "week": 604800},
    "metric length": {"mm millimeter millimetre": 1, "cm centimeter centimetre": 10,
                      "m meter metre": 1000, "km kilometer kilometre": 10**6},
    "length": {"inch inches": 1, "ft foot feet": 12, "yd yard": 36, "mile": 63360},
    "metric mass": {"mg milligram": 1, "g gram": 1000, "kg kilogram": 10**6},
    "mass": {"oz ounce": 1, "lb": 16},
    "volume": {"ml milliliter millilitre": 1, "l liter litre": 1000},
    "dollars": {"cent": 1, "dollar usd": 100},
    "euros": {"euro eur €": 1},
    "yen": {"yen": 1},
    "rupees": {"rupee": 1},
    "sterling": {"pence": 1, "gbp": 100},  # a pound may be a weight
}
UNITS = {name: (kind, size) for kind, sizes in UNIT_KINDS.items()
         for names, size in sizes.items() for name in names.split()}
UNITS |= {month: (month, 1) for month in MONTHS}
QUANTITY = re.compile(
    r"(?P<sign>[-+]?)"
    r"(?:"
    r"(?:(?P<whole>\d+) )?(?P<top>\d+)/(?P<bottom>0*[1-9]\d*)"  # 1 1/2
    r"|(?P<decimal>(?:\d{1,3}(?:[, ]\d{3})+|\d+)(?:\.\d*)?|\.\d+)"  # 1,000.50 or 18 or .5
    r"(?:[eE](?P<e>[-+]?\d{1,3})"  # 2e-3
    r"|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?(?P<power>-?\d{1,3})\}?)?"  # 2 \times 10^{-3}
    r")"
    rf"(?:\s*(?P<scale>{SCALE})s?\b)?"  # 5 million, $5M
    r"(?P<unit>"
    r"\s*(?:%|percent|€)"  # 20%
    r"|(?:"
    rf"\s+{WORD_UNIT}[A-Za-z .'/-]*"  # 18 apples in all
    r"|\s+(?:sq|cu)\.?\s[A-Za-z]+"  # 18 sq. ft
    r"|(?:\s*(?:[cmk]m|[mk]g|m[lL]|mph|ft|lbs?|oz)|\s+[mgsghlL])"  # 18cm, 18 m
    r"(?:(?:/\s*|\s+per\s)[A-Za-z]+)?"  # 18 km/h, 18 km per hour
    r")(?:\s*\^\s*\{?[23]\}?)?"  # 18 cm^2
    r"|\s*\([A-Za-z .'/-]+\)"  # 18 (apples)
    r")?")


class Quantity(NamedTuple):
    number: Fraction
    unit: str  # lower case, as it is written; "" without one


def as_quantity(text):
    """A Quantity: "18", "$1,000.50", "5 million", "1 1/2 cups", "13 (pens)", "20%", "2e-3", "five".

    None of anything else.
    """
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*\{\\(?:text|mathrm)\{([^{}]*)\}\}\s*\{\\(?:text|mathrm)\{([^{}]*)\}\}",
                  r" \1/\2", text)  # kilometres over hours
    text = re.sub(r"\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))", r" \1\2/\3\4",
                  text)
    text = TEXT.sub(r" \1", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3})", ",", text)  # 10{,}000
    text = re.sub(r"\\[,;:! ]|\*\*", " ", text).replace(r"\%", "%")
    text = re.sub(r"^(?:negative|minus)\s+", "-", text.strip(), flags=re.IGNORECASE)
    text = re.sub(r"^(-?)\s*", r"\1", text)
    currency = re.match(r"(-?)\s*\\?([$€£¥₹])\s*(?=[-\d.])", text)
    if currency:
        text = currency[1] + text[currency.end():]
    text = text.replace(r"\$", "").replace("$", "").strip()
    text = NUMBER_WORD.sub(in_digits, text, count=1)
    found = QUANTITY.fullmatch(text.rstrip("."))
    if not found:
        return None
    if found["top"]:
        number = int(found["whole"] or 0) + Fraction(int(found["top"]), int(found["bottom"]))
    else:
        number = Fraction(re.sub("[, ]", "", found["decimal"]).rstrip("."))
        number *= Fraction(10) ** int(found["e"] or found["power"] or 0)
    scale = found["scale"] or ""
    number *= SCALE_LETTERS.get(scale) or SCALES.get(scale.lower(), 1)
    if found["sign"] == "-":
        number = -number
    unit = (found["unit"] or "").strip(" ().").lower()
    if currency and not unit:
        unit = CURRENCIES[currency[2]]
    return Quantity(number, unit)


def in_digits(found):
    """What re.sub puts in the place of a NUMBER_WORD."""
    if not found[0]:
        return ""
    number = 0
    if found["ten"]:
        number = 20 + 10 * TENS.index(found["ten"].lower())
    if found["one"]:
        number += ONES.index(found["one"].lower())
    return str(number)


def same_quantity(quantity, right):
    """Whether two Quantities are equal: 1 hour is 60 minutes, and 5 km are not 5 m.

    A unit that one of them lacks, or that is in no table, is not looked at.
    """
    kind, size, power = kind_of(quantity.unit)
    right_kind, right_size, right_power = kind_of(right.unit)
    if kind and right_kind and power == right_power:
        equal = quantity.number * size**power == right.number * right_size**power
        return kind == right_kind and equal
    percents = [q.number for q in (quantity, right) if q.unit in ("%", "percent")]
    others = [q.number for q in (quantity, right) if q.unit not in ("%", "percent")]
    if percents and others and percents[0] / 100 == others[0]:  # 20% is 20 here, and 0.2
        return True
    return quantity.number == right.number


def is_unit(text):
    """Whether a text is a unit of the table: "cm", "square feet"."""
    return kind_of(text.lower())[0] is not None


def kind_of(unit):
    """(kind, size, power) of a unit: of "square cm" and "cm^2", "metric length", 10 and 2."""
    found = re.fullmatch(r"(?:(square|sq|cubic|cu)\b\.?\s*)?([a-z €]+?)(?:\s*\^\s*\{?([23])\}?)?",
                         unit)
    if not found:
        return None, 1, 1
    power = int(found[3] or 1)
    if found[1]:
        power = 2 if found[1].startswith("sq") else 3
    name = found[2]
    kind, size = UNITS.get(name) or UNITS.get(name.removesuffix("s")) or (None, 1)
    return kind, size, power
