"""The geometry task: every answer and every given size measured in the figure as it is drawn, whatever formula made
them."""

from __future__ import annotations

import cmath
import itertools
import math
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sympy

from megatron_apo.data.tasks.geometry import task
from megatron_apo.data.tasks.geometry.drawing import STYLES, drawn
from megatron_apo.data.tasks.geometry.layout import Drawing
from megatron_apo.data.tasks.geometry.problem import Problem
from megatron_apo.rewards.accuracy import check_gold, grade
from megatron_apo.rewards.formulas import parse_formula
from megatron_apo.rewards.reading import read_quantity

DRAWS = 5  # of each family


@cache
def problems(family: str) -> list[tuple[Problem, Drawing]]:
    """Problems of a family as rows show them: under other names, and in positions in which their texts fit."""
    generator = random.Random(f"test {family}")
    found: list[tuple[Problem, Drawing]] = []
    while len(found) < DRAWS:
        problem = task._with_other_names(task.FAMILIES[family].draw(generator), generator)
        drawing = task._positioned(problem, generator)
        if drawing is not None:
            found.append((problem, drawing))
    return found


def angle(points: dict[str, complex], corner: str) -> float:
    """Degrees of the angle at the second of three points."""
    one, vertex, other = (points[name] for name in corner)
    return math.degrees(abs(cmath.phase((one - vertex) / (other - vertex))))


def length(points: dict[str, complex], pair: str) -> float:
    return abs(points[pair[0]] - points[pair[1]])


def area(points: dict[str, complex], corners: str) -> float:
    places = [points[name] for name in corners]
    return (
        abs(sum((one.conjugate() * other).imag for one, other in zip(places, places[1:] + places[:1], strict=True))) / 2
    )


def pixels_per_unit(problem: Problem, points: dict[str, complex]) -> float:
    """From the lengths that the figure gives, which must agree; 1 where it gives none."""
    scales = [length(points, mark.start + mark.end) / float(mark.text) for mark in problem.figure.lengths]
    assert max(scales, default=1.0) == pytest.approx(min(scales, default=1.0), rel=1e-9)
    return scales[0] if scales else 1.0


def measured(problem: Problem, points: dict[str, complex]) -> float:
    """What the problem asks, off the drawing."""
    kind, names = problem.asked
    unit = pixels_per_unit(problem, points)
    if kind == "angle":
        return angle(points, names)
    if kind == "length":
        return length(points, names) / unit
    if kind == "area":
        return area(points, names) / unit**2
    radius = length(points, names[:2]) / unit
    if kind in ("disc", "circumference"):
        return {"disc": math.pi * radius**2, "circumference": 2 * math.pi * radius}[kind]
    share = angle(points, names[1] + names[0] + names[2]) / 360
    return {"sector": share * math.pi * radius**2, "arc": share * 2 * math.pi * radius}[kind]


@pytest.mark.parametrize("family", task.FAMILIES)
def test_the_answer_is_what_the_figure_measures(family: str) -> None:
    for problem, drawing in problems(family):
        expected = measured(problem, drawing.points)
        assert problem.answer.value == pytest.approx(expected, rel=1e-6), problem
        read = read_quantity(problem.answer.text)
        assert read is not None, problem.answer.text
        value = parse_formula(read.value) if isinstance(read.value, str) else read.value
        assert float(sympy.N(value)) == pytest.approx(expected, rel=1e-6), problem.answer.text


@pytest.mark.parametrize("family", task.FAMILIES)
def test_what_the_figure_says_is_drawn_to_its_true_values(family: str) -> None:
    for problem, drawing in problems(family):
        points, figure = drawing.points, problem.figure
        for mark in figure.angles:
            seen = angle(points, mark.start + mark.vertex + mark.end)
            if mark.right:
                assert seen == pytest.approx(90)
            elif mark.text not in ("?", ""):
                assert mark.text == f"{round(seen)}°" and seen == pytest.approx(round(seen))
        for ticks in (1, 2):
            equal = [length(points, line.start + line.end) for line in figure.segments if line.ticks == ticks]
            assert not equal or (len(equal) > 1 and max(equal) == pytest.approx(min(equal)))
            ways = [points[line.end] - points[line.start] for line in figure.segments if line.arrows == ticks]
            assert len(ways) != 1
            assert all(cmath.phase(way / ways[0]) == pytest.approx(0, abs=1e-9) for way in ways)


FACTS = {
    r"\b(\w)(\w) is parallel to (\w)(\w)": lambda p, a, b, c, d: ((p[b] - p[a]) / (p[d] - p[c])).imag,
    r"\b(\w)(\w) is perpendicular to (?:the chord )?(\w)(\w)": lambda p, a, b, c, d: (
        ((p[b] - p[a]) / (p[d] - p[c])).real
    ),
    r"\b(\w)(\w) bisects ∠(\w)(\w)(\w)": lambda p, a, d, b, v, c: (
        angle(p, b + v + (a if v == d else d)) - angle(p, c + v + (a if v == d else d))
    ),
    r"\b(\w) lies on (?:the line )?(\w)(\w)": lambda p, x, a, b: ((p[x] - p[a]) / (p[b] - p[a])).imag,
    r"\b(\w)(\w) = (\w)(\w)": lambda p, a, b, c, d: length(p, a + b) / length(p, c + d) - 1,
    r"\b(\w) is the midpoint of (\w)(\w)": lambda p, m, a, b: abs((p[a] + p[b]) / 2 - p[m]),
    r"(\w) and (\w) are the midpoints of (\w)(\w) and (\w)(\w)": lambda p, m, n, a, b, c, d: (
        abs((p[a] + p[b]) / 2 - p[m]) + abs((p[c] + p[d]) / 2 - p[n])
    ),
    r"(\w)(\w)(\w) has a right angle at (\w)": lambda p, a, b, c, v: (
        angle(p, "".join([x := sorted({a, b, c} - {v})[0], v, ({a, b, c} - {v, x}).pop()])) - 90
    ),
    r"∠(\w)(\w)(\w) is a right angle": lambda p, a, b, c: angle(p, a + b + c) - 90,
    r"\b(\w)(\w)(?: and (\w)(\w))? touch(?:es)? the circle with centre O at (\w)(?: and (\w))?": lambda p, *n: sum(
        abs(angle(p, "O" + at + ({one, other} - {at}).pop()) - 90)
        for one, other, at in ((n[0], n[1], n[4]), (n[2], n[3], n[5]))
        if at
    ),
    r"(\w)(\w) is a diameter of the circle with centre O": lambda p, a, b: abs((p[a] + p[b]) / 2 - p["O"]),
    r"(\w)(\w)(\w)(\w) is a (?:parallelogram|rhombus|rectangle|square)": lambda p, a, b, c, d: abs(
        p[a] + p[c] - p[b] - p[d]
    ),
    r"Lines (\w)(\w) and (\w)(\w) cross at (\w)": lambda p, a, b, c, d, x: (
        abs(((p[x] - p[a]) / (p[b] - p[a])).imag) + abs(((p[x] - p[c]) / (p[d] - p[c])).imag)
    ),
    r"chords (\w)(\w) and (\w)(\w) cross at (\w)": lambda p, a, b, c, d, x: (
        ((p[b] - p[a]) * (p[d] - p[c]) / ((p[d] - p[a]) * (p[b] - p[c]))).imag * 0
        + abs(((p[x] - p[a]) / (p[b] - p[a])).imag)
        + abs(((p[x] - p[c]) / (p[d] - p[c])).imag)
    ),
}


@pytest.mark.parametrize("family", task.FAMILIES)
def test_what_the_text_says_is_true_of_the_figure(family: str) -> None:
    for problem, drawing in problems(family):
        for pattern, off in FACTS.items():
            for found in re.finditer(pattern, problem.text):
                assert off(drawing.points, *found.groups()) == pytest.approx(0, abs=1e-6), (found[0], problem.text)


def test_every_kind_of_fact_occurs() -> None:
    texts = [problem.text for family in task.FAMILIES for problem, _ in problems(family)]
    for pattern in FACTS:
        assert any(re.search(pattern, text) for text in texts), pattern


@pytest.mark.parametrize("family", task.FAMILIES)
def test_points_of_a_circle_lie_on_it(family: str) -> None:
    """All points that lines between points of the circle end at; the centre, and points outside are known by name."""
    for problem, drawing in problems(family):
        for circle in problem.figure.circles:
            centre, radius = drawing.points[circle.centre], length(drawing.points, circle.centre + circle.on)
            on = [name for name, place in drawing.points.items() if abs(abs(place - centre) - radius) < 1e-6]
            lone = {"circumference and area": 1, "tangent length": 1, "chord and distance": 2, "two tangents": 2}
            assert len(on) >= lone.get(family, 2 if family == "tangent and chord" else 3)


@pytest.mark.parametrize("family", task.FAMILIES)
def test_the_arithmetic_of_the_steps(family: str) -> None:
    """Whatever a step says of plain numbers, "180° - 50° = 130°", holds; and the last one says the answer."""
    signs = str.maketrans({"°": "", ":": "/", "·": "*"})
    for problem, _ in problems(family):
        for step in problem.steps:
            plain = step.replace("²", "**2").translate(signs)
            equations = re.findall(r"(?<![\w$}*])((?:[\d(][\d\s()*/+.-]*))=\s*([\d.]+)(?![\d*/]| [*/+-])", plain)
            for left, right in equations:
                assert sympy.sympify(left.strip()) == pytest.approx(float(right.rstrip("."))), step
        assert problem.answer.text in problem.steps[-1] or problem.answer.text in "".join(problem.steps)


@pytest.mark.parametrize("family", task.FAMILIES)
def test_texts_touch_neither_lines_nor_each_other(family: str) -> None:
    for _, drawing in problems(family):
        for one, other in itertools.combinations(drawing.texts, 2):
            apart, together = one.centre - other.centre, one.half + other.half
            assert abs(apart.real) >= together.real or abs(apart.imag) >= together.imag, (one, other)
        ends = [pair for line in [*drawing.lines, *drawing.marks] for pair in zip(line[:-1], line[1:], strict=True)]
        fine = np.concatenate([start + (end - start) * np.linspace(0, 1, 200) for start, end in ends])
        for text in drawing.texts:
            away = fine - text.centre
            assert not ((abs(away.real) < text.half.real) & (abs(away.imag) < text.half.imag)).any(), text
            low, high = text.centre - text.half, text.centre + text.half
            assert min(low.real, low.imag) >= 0 and high.real <= task.SIZE[0] and high.imag <= task.SIZE[1]


def test_a_picture_shows_lines_and_letters_where_the_drawing_has_them() -> None:
    for family in ("Pythagoras", "sector area", "two tangents"):
        _, drawing = problems(family)[0]
        picture = np.asarray(drawn(drawing, task.SIZE, STYLES[0])).astype(int)
        assert picture.shape == (task.SIZE[1], task.SIZE[0], 3)
        for line in drawing.lines:
            for share in (0.3, 0.5, 0.7):
                at = line[0] + (line[1] - line[0]) * share
                assert picture[round(at.imag - 0.5), round(at.real - 0.5)].max() < 120
        for text in drawing.texts:
            low, high = text.centre - text.half, text.centre + text.half
            box = picture[math.floor(low.imag) : math.ceil(high.imag), math.floor(low.real) : math.ceil(high.real)]
            assert box.min() < 120  # ink
        assert (picture[:4] == 255).all() and (picture[-4:] == 255).all()  # the border stays empty


def test_levels_choose_families() -> None:
    for level in ("easy", "medium", "hard"):
        seen = {task.draw_row("train", number, seed=1, level=level).level for number in range(6)}
        assert seen == {level}
    assert len(task.FAMILIES) >= 12
    assert set(Counter(family.level for family in task.FAMILIES.values())) == {"easy", "medium", "hard"}


def test_rows_of_different_splits_share_no_problem() -> None:
    """The hard families have few problems each: drawn without regard to splits, they would meet."""
    seen = {}
    for split in ("train", "validation", "test"):
        rows = [task.draw_row(split, number, seed=3, level="hard") for number in range(60)]
        seen[split] = {(row.family, row.problem.values) for row in rows}
        assert len({row.id for row in rows}) == 60 and len(seen[split]) > 20
        again = task.draw_row(split, 59, seed=3, level="hard")
        assert again.question == rows[59].question and again.picture.tobytes() == rows[59].picture.tobytes()
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_choices_hold_the_answer_once_and_the_grader_tells_them_apart() -> None:
    letters = Counter()
    for number in range(60):
        row = task.draw_row("train", number, seed=5, choices=True)
        open_form = task.draw_row("train", number, seed=5)
        options = [option.text for option in row.options]
        assert len(options) == len(set(options)) == 4
        values = [option.value for option in row.options]
        assert min(abs(one - other) for one, other in itertools.combinations(values, 2)) > 1e-6
        assert min(values) > 0 and (row.problem.answer.unit == "" or max(values) < 180)
        right = options["ABCD".index(row.answer)]
        assert right == open_form.answer
        assert f"({row.answer}) {right}" in row.question
        assert row.demonstration.endswith(f"That is option {row.answer}.</think><answer>{row.answer}</answer>")
        if number < 12:
            assert [grade(option, right) for option in options].count("correct") == 1
        letters[row.answer] += 1
    assert set(letters) == set("ABCD") and min(letters.values()) >= 6


def test_gold_answers_are_read_and_degrees_may_have_their_sign() -> None:
    for number in range(20):
        row = task.draw_row("train", number, seed=6)
        check_gold(row.answer)
        assert grade(row.answer, row.answer) == "correct"
        assert row.demonstration.endswith(f"</think><answer>{row.answer}</answer>")
        if row.problem.answer.unit == "°":
            for written in (f"{row.answer}°", f"${row.answer}^\\circ$"):
                assert grade(written, row.answer) == "correct"


def test_files(tmp_path: Path) -> None:
    arguments = {"train_rows": 3, "validation_rows": 1, "test_rows": 1, "seed": 0, "level": "easy"}
    written = task.write_geometry_task(tmp_path / "a", **arguments)
    assert {path.name for path in written.iterdir()} == {
        *("train.jsonl", "validation.jsonl", "test.jsonl", "images", "task.json")
    }
    with pytest.raises(ValueError, match="level is 'easy', not 'hard'"):
        task.write_geometry_task(tmp_path / "a", **{**arguments, "level": "hard"})
    with pytest.raises(ValueError, match="level='harder': must be one of easy, medium, hard, mixed"):
        task.write_geometry_task(tmp_path / "b", **{**arguments, "level": "harder"})
