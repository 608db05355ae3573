"""Answers that a model may write to hang, break or fool the grader, by class; the table of docs/rewards.md.

No answer here is right for any of ``GOLDS``: each must come out as ``wrong``, fast, and leave the grader alive.
"""

from __future__ import annotations

import random
import string

GOLDS = (
    "13",
    r"\frac{1}{2}",
    "$x^2+1$",
    r"\{1,2,3\}",
    "(1, 2]",
    "B",
    "5 cm",
    "yes",
    "y=2x+1",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    "(a+b)(c+d)",
)


def _nested(opening: str, closing: str, depth: int, inside: str = "1") -> str:
    return opening * depth + inside + closing * depth


HOSTILE: dict[str, list[str]] = {
    "towers of powers": [
        *("9^9^9^9", "9^{9^{9^{9}}}", "9**9**9**9", "2^{2^{2^{2^{2^{2}}}}}", "10^{10^{10}}", "9^{9999999}"),
        *("((9^9)^9)^9", "(((2^{99})^{99})^{99})^{99}", "9^{-9^{9}}", "(-1)^{9^{9^{9}}}", "1^{9^{9^9}}", "0^{-9^{9^{9}}}"),
        *("x^{x^{x^{x}}}", "e^{e^{e^{e^{9}}}}", r"\sqrt{9^{9^{9^{9}}}}", "1.0000001^{10^{12}}", "i^{9^{9^{9}}}"),
        *("(1+10^{-9})^{10^{9}}", r"\exp(\exp(\exp(\exp(9))))", "9^(9^(9^9))", "(9^{200})^{200}", "99999999999^{200^{3}}"),
        *(r"\frac{9^{200}}{2}^{200}", r"|9^{200}|^{200}", "9^{99*99*99}", r"2^{\frac{10^9}{3}}", "9^{100!}", "9⁹", "9^9^"),
        *(r"\left(9^{99}\right)^{99}", r"{9^{99}}^{99}", "9^{0.000001^{9}}", "(9^{1/0.0001})", "7^{1e9}", "2^{1/1e-9}"),
    ],
    "factorials and binomials": [
        *("100000!", "9999999!", "9!!!!!!", "((9!)!)!", "(10^9)!", "(9^{9^9})!", "170!!", "-9999999!", "(100!)!"),
        *(r"\frac{9999999!}{9999998!}", "x!!!!!!!!", "(99999!)^{99}", "(9999999999)_{2}", "(9999999999)_{99}", "[99999999]_{2}"),
        *(r"\Gamma(10^9)", r"\gamma(99999999)", r"\binom{10^9}{5}", r"\binom{999999999}{499999999}", r"\binom{9^{99}}{9}"),
        *(r"\binom{\binom{99}{9}}{\binom{99}{9}}", r"{99999999 \choose 9999}", "(20+20+20+20)!", "(9*9*9*9*9*9)!", "(100!)/(99!)!"),
        *("C(10^9, 10^8)", "10^9P10^8", "π!", "(-1)!", "0.5!", "1000000000000!", "(1e9)!", r"\left(99999999\right)!", "{99999999}!"),
    ],
    "deep nesting": [
        *(_nested(r"\frac{1}{", "}", depth) for depth in (9, 20, 60, 2000)),
        *(_nested(r"\frac{", "}{2}", depth) for depth in (9, 60, 2000)),
        *(_nested("(", ")", depth, "12") for depth in (8, 9, 30, 499, 2000)),
        *(_nested("{", "}", depth, "12") for depth in (8, 60, 2000)),
        *(_nested(r"\sqrt{", "}", depth, "2") for depth in (8, 9, 100, 2000)),
        *(_nested("|", "|", depth, "12") for depth in (2, 3, 400)),
        *(_nested(r"\left(", r"\right)", depth, "12") for depth in (8, 9, 90)),
        *(_nested("[", "]", depth, "1,2") for depth in (8, 9, 400)),
        *(_nested(r"\{", r"\}", depth, "1") for depth in (8, 9, 400)),
        *(_nested("(1,", ")", depth, "1") for depth in (4, 8, 9, 300)),
        *(_nested(r"\sin(", ")", depth, "1") for depth in (8, 60)),
        *("(" * 900, ")" * 900, "(" * 5000, "{" * 400, r"\frac" * 60, r"\sqrt" * 100 + "2", "x_" * 100 + "1", "_" * 100),
        *("-" * 100 + "12", "+" * 400 + "12", "-(" * 8 + "12" + ")" * 8, "!" * 100, "'" * 200, r"\frac1" * 50 + "2"),
        *(_nested(r"\boxed{", "}", depth, "12") for depth in (3, 50)),
        *(_nested(r"\text{", "}", depth, "12") for depth in (3, 50)),
        *(_nested("x^{", "}", depth, "2") for depth in (3, 60)),
    ],
    "very long": [
        *(r"\frac{1}{2}+" * 9000 + "1", "9" * 100_000, "x" * 100_000, " " * 100_000 + "12", r"\sqrt{2}" * 12_500, "$" * 100_000),
        *("9" * 5000, "9" * 41, "0." + "0" * 4000 + "1", "1+" * 400 + "1", "1+" * 99 + "1", "x+" * 99 + "x", "1," * 5000 + "1"),
        *("1," * 39 + "1", "1 " * 90, "x" * 190, "x y " * 45, "(1)" * 60, "(x)" * 60, "1/" * 90 + "3", "2*" * 90 + "2", "2^2" * 60),
        *("ab" * 5000, "A" * 900, "yes " * 5000, "\\" * 100_000, r"\\" * 400, "{}" * 90, "\n" * 900 + "12", "=" * 100, "1=" * 90 + "2"),
        *(r"\sin" * 60 + "x", r"\cdot" * 90, r"\alpha" * 150, "&" * 100, "1<" * 60 + "2", "," * 900, "." * 900, "5 cm " * 100),
        *(" ".join(string.ascii_letters), "+".join(f"x_{{{index}}}" for index in range(30)), "é" * 900, "中" * 900),
    ],
    "control and invisible characters": [
        *("1\x003", "\x0013", "13\x00", "\x00" * 900, "1\u200b3", "\u200b13", "13\ufeff", "\u2060" * 50 + "13", "1\u00ad3"),
        *("\ud80013", "13\udfff", "\ud83d", "\u202e31", "\u202d13\u202c", "\u206613\u2069", "\u200e13", "\u061c13", "13\x7f"),
        *("\x1b[31m13\x1b[0m", "\b\b13", "13\x85", "\ue00013", "\uffff13", "\U000e003113", "13\u0000\\frac{1}{2}", "B\u200b", "\u200bB"),
        *("١٣", "१३", "１３\u200b", "⑬", "ⅩⅢ", "¹³", "1\u03013\u0301", "𝟏𝟑", "½", "y\u200bes", "ye\u0000s", "1\u20e33", "\u1160" * 9 + "13"),
    ],
    "sets and intervals": [
        r"\{" + ",".join(str(number) for number in range(30)) + r"\}",
        r"\{" + ",".join(str(number) for number in range(5000)) + r"\}",
        r"\{" + ",".join(f"x_{{{number}}}" for number in range(20)) + r"\}",
        r"\{" + ",".join(f"9^{{{number}}}" for number in range(150, 190)) + r"\}",
        *(r"\{9^{9^{9}}, 1, 2\}", "[9^{9^{9}}, 1)", "(1, 9^{9^{9}}]", "(-\\infty, \\infty)", "[-10^{99}, 10^{99}]", "(0, 100)"),
        *(r"\mathbb{R}", r"\mathbb{N}", r"\mathbb{R} \setminus \mathbb{Q}", r"[0,1] \cup [2,3] \cup [4,5] \cup [6,7]", "(2, 1]"),
        *(r"\mathbb{R} \cap \{1,2,3,4\}", r"\{x \in \mathbb{R}\}", r"\{\}", r"\emptyset", r"\{\emptyset\}", r"\{\{1,2,3\}\}", "(1,2,3)"),
        *(r"x \in [1,2]", r"\{1,2\} \cup \{4\}", r"[\sqrt{2}, \pi]", "(1,1]", "[2,1]", r"(x, x]", r"(\infty, -\infty)", r"\{1, 2, x\}"),
        *(r"\{" + r"\cup\{".join(["1}"] * 30), r"[1,2]" * 30, r"\{1,2,3", r"1,2,3\}", "{1;2;3;4}", r"\{\sqrt{2},\sqrt{3},\sqrt{5}\}"),
        r"\mathbb{C} \setminus \{" + ",".join(str(number) for number in range(20)) + r"\}",
        " \\cup ".join(f"[{number},{number + 1})" for number in range(0, 36, 2)),
        " \\cap ".join(f"(-\\infty,{number}+x)" for number in range(6)),
    ],
    "matrices": [
        r"\begin{pmatrix}" + r"\\".join("&".join(["1"] * 100) for _ in range(100)) + r"\end{pmatrix}",
        r"\begin{pmatrix}" + r"\\".join("&".join(["9"] * 6) for _ in range(6)) + r"\end{pmatrix}",
        r"\begin{pmatrix}" + r"\\".join("&".join(["x"] * 6) for _ in range(6)) + r"\end{pmatrix}",
        r"\begin{pmatrix}a&b\\c&d\end{pmatrix}^{200}",
        r"\begin{pmatrix}a&b\\c&d\end{pmatrix}^{20}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{-1}",
        r"\begin{pmatrix}1&2\\2&4\end{pmatrix}^{-1}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}" * 8,
        r"\begin{pmatrix}1&2\\3\end{pmatrix}",
        r"\begin{bmatrix}9^{99}&1\\1&1\end{bmatrix}^{99}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}+1",
        r"\frac{1}{\begin{pmatrix}1&2\\3&4\end{pmatrix}}",
        r"\begin{pmatrix}\begin{pmatrix}1\end{pmatrix}\end{pmatrix}",
        r"\begin{pmatrix}1&2\\3&4",
        r"\begin{array}{c}1\\2\end{array}",
        r"\begin{vmatrix}" + r"\\".join("&".join(["x"] * 9) for _ in range(9)) + r"\end{vmatrix}",
        *(r"\operatorname{eye}(999999999)", r"\operatorname{zeros}(99999,99999)", r"\operatorname{ones}(10^5,10^5)"),
        *(r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\operatorname{eigenvals}(x)", r"\operatorname{svd}(A)"),
    ],
    "sums, products, integrals and limits": [
        *(r"\sum_{i=1}^{10^9} i", r"\sum_{n=1}^{\infty} \frac{1}{n^{2}}", r"\prod_{i=1}^{10^9} i", r"\prod_{i=1}^{99999} i"),
        *(r"\int_0^1 x^{x} dx", r"\int e^{x^{2}} dx", r"\int\int\int x dx", r"\int_0^{\infty} \frac{\sin x}{x} dx", r"\oint x"),
        *(r"\lim_{x \to 0} \frac{\sin x}{x}", r"\lim_{x \to \infty} (1+1/x)^{x}", r"\frac{d}{dx} x^{x^{x}}", r"\frac{\partial}{\partial x} x"),
        *(r"\sum_{i=1}^{10^9} \sum_{j=1}^{10^9} ij", r"\int_{-10^9}^{10^9} \sin(x^{9}) dx", r"\gcd(10^{40}, 3)", r"\operatorname{lcm}(1,2)"),
        *(r"\max(1, \max(2, 3))", r"\min_{x} x^2", r"\sup x", r"\arg x", r"\bmod 7", r"10^{200} \mod 7", r"7 \pmod{5}", r"\nabla f"),
    ],
    "no numbers": [
        *("nan", "NaN", "inf", "-inf", "infinity", "oo", "zoo", r"\infty", r"-\infty", r"\infty-\infty", "1/0", "0/0", "-1/0"),
        *(r"\frac{1}{0}", r"\frac{0}{0}", r"0 \cdot \infty", r"\log(0)", r"\log_{0}{5}", r"\log_{1}{5}", r"\tan(\pi/2)", "0^{-1}"),
        *("None", "null", "undefined", "True", "i", "\\sqrt{-1}", "e", r"\pi", "?", "...", "-", "+", "=", "$", "$$", "\\", "{}", "()"),
    ],
    "code": [
        *("__import__('os').system('id')", "eval('13')", "exec('x=13')", "(lambda: 13)()", "open('/etc/passwd').read()", "13 if 1 else 0"),
        *("{{7*7}}", "${7*7}", "`id`", "$(id)", "'; DROP TABLE x; --", "().__class__.__bases__[0]", "sympify('12')", "E1.func", "N(12)"),
        *("Symbol('x')", "S(12)", "x.subs(x, 12)", r"\input{/etc/passwd}", r"\write18{id}", r"\def\x{\x\x}\x", r"\csname x\endcsname"),
        *(r"\href{http://x}{13}", "<script>13</script>", "http://localhost/13", "file:///etc/passwd", "import os", "print(13)", "f'{13}'"),
        *("0x0D", "0b1101", "1_3", "13j", "b'13'", "'13'+''", "[13][0]", "{13: 13}[13]", "range(14)[-1]", "int('13')"),
    ],
    "many answers at once": [
        *("A B C D", "ABCD", "A, B, C, D", "A or B", "B and C", "B or not B", "A/B", "(A)(B)(C)(D)", "not A", "B. C", "A B", "B B", "BB"),
        *("A. B. C. D.", "all of the above", "any option", "B?A", "B\nA", "A;B", "A|B", "(A), (B)", "B, C", "letter", "AB", "A-D", "B=A"),
        *("12 or 13", "13 or 12", "12, 13", "12 and 13", r"\{12,13\}", "12 13", "13 14", "12/13", "[0, 100]", "0 < x < 100", "x > 0"),
        *("1 2 3 4 5 6 7 8 9 10 11 12 13 14", "between 12 and 14", "13 or so, maybe 14", "about 12 to 14", "12-14", "12~14", "13 ± 5"),
        *(r"\pm 13", "12=13", "13=12", "not 13", "13 is wrong", "minus 13", "13 less than 20", "at least 13", "1/2 or 1/3", "yes or no"),
        *("yes/no", "yes and no", "not yes", "yesno", "5 cm or 6 cm", "5 m", "5 kg", "5 cm^2", "50 cm", "x^2+1 or x^2-1", "x^2", "y=2x"),
        *("13 and B and yes", "13; 1/2; 5 cm", "<answer>13</answer>", "</answer>13", "answer", "the answer", "13 13", "13,13", "(13, 13)"),
    ],
    "numbers out of bounds": [
        *("1e999999999", "1e-999999999", "-1e999", "1.3e1e1", "1e", "1.3.0", "1..3", ".13.", "+-+13", "1,3", "1,33", "1.300,0"),
        *("13.0000001", "12.9999999", "12.999999999999999999999999", "13.000000000000000000000000000001", "0" * 900 + "12", "-0"),
        *("13e99", "0.13e-99", "1 3", "1\u00a03", "13%%", "13!%", "%13", "13°°", "13^\\circ\\circ", "1'3", "13\"", "13k", "13#", "#13"),
    ],
    "formulas that are slow to compare": [
        *("(a+b+c+d+e+f+g)^{30}", "(a+b+c+d+e+f+g)^{20}", "(a+b)^{20}(c+d)^{20}", "(x+1)^{20}(x-1)^{20}(x+2)^{20}", "(x+y+z)^{20}"),
        *(r"\sqrt{x+\sqrt{x+\sqrt{x}}}", r"\frac{x^{20}-1}{x-1}", "x^{0.123456789}", r"\sin(\cos(\tan(x)))", r"\log(\log(\log(x)))"),
        *(r"\sqrt{1+\sqrt{2+\sqrt{3+\sqrt{5}}}}", r"\sin(10^{200})", r"\tan(9^{99})", r"\arcsin(\sin(x))", r"\exp(\exp(x))", r"e^{x^{2}}"),
        *(r"|x|^{20}", r"\sqrt{(x-1)^{2}}+\sqrt{(x+1)^{2}}", r"\frac{1}{x}+\frac{1}{x+1}+\frac{1}{x+2}+\frac{1}{x+3}", "y=x^{20}+x+1"),
        *("x^{5}-x-1=0", "x^{20}+y^{20}=1", r"x^2+y^2 \leq 1", r"\sin(x)=x", r"e^{x}=x^{20}", r"x<y<z<x", r"x=x", "0=0", "1=2", "a=b=c=d"),
        *(r"\lfloor 9^{199} \rfloor", r"\lceil x \rceil", r"\cos(x)^{20}+\sin(x)^{20}", r"\frac{\sqrt{2}+\sqrt{3}}{\sqrt{5}-\sqrt{7}}"),
        *(r"\cosh(\sinh(99))", r"\exp(99999)", "99^{199}-98^{199}", r"(1+\sqrt{2})^{199}", r"(\sqrt{2}+\sqrt{3}+\sqrt{5})^{99}", "2^{x}=9^{y}"),
    ],
    "words": [
        *("thirteen", "one half", "I do not know", "see above", "the sum of 7 and 6", "as shown", "YES!NO", "n/a", "none", "yep", "nope"),
        *("ja", "да", "是", "はい", "oui", "y", "n", "true", "correct", "right", "1", "option two", "the second one", "same as gold"),
    ],
}


def mutations(count: int, seed: int) -> list[str]:
    """Random changes of the hostile answers: cut, repeated, swapped, wrapped, joined; the same for one seed."""
    generator = random.Random(seed)
    answers = [answer for group in HOSTILE.values() for answer in group if len(answer) <= 2000]
    found = []
    for _ in range(count):
        text = generator.choice(answers)
        for _ in range(generator.randint(1, 3)):
            text = _mutated(text, generator.choice(answers), generator)
        found.append(text)
    return found


def _mutated(text: str, other: str, generator: random.Random) -> str:
    start, end = sorted(generator.randrange(len(text) + 1) for _ in range(2))
    digits = str(generator.choice([0, 1, 2, 9, 20, 99, 200, 1000, 10**9, 10**30]))
    return generator.choice(
        [
            text[:start] + text[end:],
            text[:start] + text[start:end] * 3 + text[end:],
            text[:start] + other + text[end:],
            text[:start] + digits + text[start:],
            text[:start] + generator.choice(["^", "!", "(", ")", "{", "}", "\\", ",", "_", "|", "=", "$", " "]) + text[start:],
            rf"\frac{{{text}}}{{{other}}}",
            rf"\sqrt{{{text}}}",
            f"({text})^{{{other}}}",
            f"({text})({other})",
            f"{text} = {other}",
            rf"\{{{text}, {other}\}}",
            f"[{text}, {other})",
            text[:1] * 50 + text,
        ]
    )
