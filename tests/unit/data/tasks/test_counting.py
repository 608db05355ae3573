"""The counting task: rays meet solids where they are, everything can be seen, and answers are recounted from the
question's words."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from megatron_apo.data.tasks.counting import placement, questions, task
from megatron_apo.data.tasks.counting.camera import HEIGHT, WIDTH, Camera, look
from megatron_apo.data.tasks.counting.render import SAMPLES, render
from megatron_apo.data.tasks.counting.scene import (
    COLOURS,
    MATERIALS,
    SIZES,
    SOLIDS,
    VEHICLES,
    Ground,
    Scene,
    Thing,
    View,
)
from megatron_apo.data.tasks.counting.solids import Solid, solids_of
from megatron_apo.rewards.accuracy import check_gold

INSIDE = {
    "sphere": lambda p: (p**2).sum(axis=0) < 1,
    "box": lambda p: np.abs(p).max(axis=0) < 1,
    "cylinder": lambda p: (np.hypot(p[0], p[1]) < 1) & (np.abs(p[2]) < 1),
    "cone": lambda p: (np.hypot(p[0], p[1]) < (1 - p[2]) / 2) & (np.abs(p[2]) < 1),
}
VIEW = View(distance=11.5, elevation=32, light_azimuth=130, light_elevation=55)
GROUND = Ground("plain", (0.33, 0.33, 0.34), (0.33, 0.33, 0.34), 1.0, 0.0)


@cache
def drawn(split: str, number: int) -> task.CountingRow:
    return task.draw_row(split, number, seed=11)


def rows() -> list[task.CountingRow]:
    return [drawn(split, number) for split in ("test", "shifted") for number in range(16)]


@pytest.mark.parametrize("kind", INSIDE)
def test_rays_enter_a_solid_where_walking_along_them_does(kind: str) -> None:
    generator = np.random.default_rng(0)
    centre, matrix = generator.normal(size=3), generator.normal(size=(3, 3)) + 2 * np.eye(3)
    solid = Solid(kind, centre.astype(np.float32), matrix.astype(np.float32), 0, (0, 0, 0), "matte")
    starts = centre[:, None] + 8 * (away := generator.normal(size=(3, 300))) / np.linalg.norm(away, axis=0)
    ways = centre[:, None] + matrix @ generator.uniform(-1, 1, size=(3, 300)) - starts
    t = solid.entry(starts.astype(np.float32), ways.astype(np.float32))
    steps = np.arange(0, 2.5, 5e-4)
    walked = starts[:, :, None] + ways[:, :, None] * steps
    own = np.linalg.inv(matrix) @ (walked - centre[:, None, None]).reshape(3, -1)
    inside = INSIDE[kind](own).reshape(300, -1)
    first = np.where(inside.any(axis=1), steps[inside.argmax(axis=1)], np.inf)
    both = np.isfinite(t) & np.isfinite(first)
    assert np.abs(t[both] - first[both]).max() < 2e-3
    assert (np.isfinite(t) ^ np.isfinite(first)).sum() <= 6  # a grazing ray can slip between two steps
    assert 60 < both.sum() <= 300

    points = (starts + ways * np.where(np.isfinite(t), t, 0))[:, both].astype(np.float32)
    normals = solid.normals(points)
    assert np.linalg.norm(normals, axis=0) == pytest.approx(1, abs=1e-4)
    for side, expected in ((1, False), (-1, True)):
        beside = points + side * 0.01 * normals
        here = INSIDE[kind](np.linalg.inv(matrix) @ (beside - centre[:, None]))
        assert (here == expected).mean() > 0.97  # not beside an edge


def test_a_ray_through_a_pixel_projects_to_it() -> None:
    camera = Camera.of(VIEW)
    rays = camera.rays(0, 0, WIDTH, HEIGHT, 1)
    for row, column in ((0, 0), (100, 40), (251, 335)):
        point = camera.eye + 7.5 * rays[:, row, column]
        assert camera.project(point[:, None])[:, 0] == pytest.approx([column + 0.5, row + 0.5], abs=1e-2)


def test_everything_is_as_visible_as_its_level_says_and_within_the_picture() -> None:
    shares = []
    for row in [drawn(split, number) for split in ("test", "shifted") for number in range(8)]:
        camera = Camera.of(row.scene.view)
        solids = [solid for owner, thing in enumerate(row.scene.things) for solid in solids_of(thing, owner)]
        buffers = look(camera, solids, len(row.scene.things), SAMPLES)
        owners = np.array([solid.owner for solid in solids])
        seen = np.where(buffers.solid >= 0, owners[buffers.solid], -1)
        for owner, thing in enumerate(row.scene.things):
            alone = look(camera, solids_of(thing, 0), 1, SAMPLES).solid >= 0
            assert not alone[0].any() and not alone[-1].any() and not alone[:, [0, -1]].any()
            shares.append((seen == owner).sum() / alone.sum())
            assert shares[-1] >= placement.LEVELS[row.level].visible, (row.id, thing)
            assert (seen == owner).sum() >= 60 * SAMPLES**2
    assert min(shares) < 0.8  # some are hidden in part


def footprint(thing: Thing) -> float:
    """Radius of the circle about its place that the thing's solids stand in, from their own measures."""
    reaches = []
    for solid in solids_of(thing, 0):
        if solid.kind == "box":
            away = solid.corners()[:2] - np.array(thing.place)[:, None]
            reaches.append(np.hypot(*away).max())
        else:
            reaches.append(np.linalg.norm(solid.matrix[:2], axis=0).max() + math.dist(solid.centre[:2], thing.place))
    return max(reaches)


def test_things_stand_apart_and_their_number_is_that_of_the_level() -> None:
    for row in rows():
        things = row.scene.things
        fewest, most = placement.LEVELS[row.level].things
        more = 2 if row.id.startswith("shifted") else 0
        assert fewest + more <= len(things) <= most + more
        for index, one in enumerate(things):
            for other in things[:index]:
                assert math.dist(one.place, other.place) > footprint(one) + footprint(other)


def test_the_shifted_scenes_show_what_the_others_do_not() -> None:
    usual, shifted = ([drawn(split, number) for number in range(16)] for split in ("test", "shifted"))
    assert {thing.shape for row in usual for thing in row.scene.things} == set(SOLIDS)
    assert {thing.shape for row in shifted for thing in row.scene.things} == set(VEHICLES)
    assert {thing.colour for row in usual for thing in row.scene.things} == set(COLOURS)
    assert {thing.colour for row in shifted for thing in row.scene.things} > set(COLOURS)
    assert {row.scene.ground.pattern for row in usual} == {"plain"}
    assert {row.scene.ground.pattern for row in shifted} == {"checks", "planks", "tiles", "blotches"}


SINGULAR = {"buses": "bus", **{f"{shape}s": shape for shape in (*SOLIDS, "car", "truck", "plane", "object")}}


def matching(phrase: str, things: list[Thing]) -> list[Thing]:
    """The things that a phrase such as "small red cubes" means, word by word."""
    for word in phrase.split():
        word = SINGULAR.get(word, word)
        if word != "object":
            things = [thing for thing in things if word in thing.kind]
    return things


def recounted(row: task.CountingRow) -> str:
    """The answer to the question as a reader of its words would find it in the scene."""
    text, things = row.question.text, list(row.scene.things)
    if found := re.fullmatch(r"Which are there more of\?\n\(A\) (.+)\n\(B\) (.+)\n\(C\) equally many of both", text):
        one, other = (len(matching(phrase, things)) for phrase in found.groups())
        return "A" if one > other else "B" if other > one else "C"
    if found := re.fullmatch(r"How many more (.+) than (.+) are there\?", text):
        one, other = (len(matching(phrase, things)) for phrase in found.groups())
        assert one >= other
        return str(one - other)
    if found := re.fullmatch(r"How many objects are not (.+)\?", text):
        return str(len(things) - len(matching(found[1], things)))
    if found := re.fullmatch(r"How many objects are (.+) or (.+) \(or both\)\?", text):
        return str(sum(any(thing in matching(phrase, things) for phrase in found.groups()) for thing in things))
    if found := re.fullmatch(r"How many (.+) are to the (left|right) of the (.+)\?", text):
        (reference,) = matching(found[3], things)
        camera = Camera.of(row.scene.view)

        def x(thing: Thing) -> float:
            corners = np.concatenate([solid.corners() for solid in solids_of(thing, 0)], axis=1)
            return float(camera.project(corners.mean(axis=1, keepdims=True))[0, 0])

        side = -1 if found[2] == "left" else 1
        return str(sum(side * (x(thing) - x(reference)) > 0 for thing in matching(found[1], things)))
    found = re.fullmatch(r"How many (.+) are there\?", text)
    assert found, text
    return str(len(matching(found[1], things)))


def many_questions() -> list[task.CountingRow]:
    """Several questions about each scene."""
    found = []
    for row in rows():
        generator = random.Random(row.id)
        shifted = row.id.startswith("shifted")
        for level in placement.LEVELS:
            asked = task.ask(row.scene, generator, level, shifted=shifted)
            found.append(replace(row, level=level, question=asked))
    return [*rows(), *found]


def test_answers_are_what_the_words_of_the_question_ask_for() -> None:
    kinds, answers = Counter(), Counter()
    for row in many_questions():
        assert row.question.answer == recounted(row), row.question
        kinds[row.question.kind] += 1
        answers[row.question.answer] += 1
    assert set(kinds) == {
        *("all", "one attribute", "two attributes", "negation", "either", "beside", "difference", "comparison")
    }
    assert len(answers) >= 8 and answers.most_common(1)[0][1] < 0.4 * sum(answers.values())
    assert answers["0"] > 0


def test_neither_side_of_a_comparison_is_the_safer_guess() -> None:
    letters = Counter()
    for row in rows():
        generator = random.Random(row.id)
        asker = questions.Asker(row.scene, generator, shifted=row.id.startswith("shifted"))
        letters.update(questions.comparison(asker).answer for _ in range(30))
    assert 0.85 < letters["A"] / letters["B"] < 1.18 and letters["C"] > 50


def test_demonstrations_name_every_thing_and_end_with_the_answer() -> None:
    for row in many_questions():
        thought = row.question.thought
        for number, thing in enumerate(sorted(row.scene.things, key=lambda t: _left(row.scene, t)), start=1):
            assert f"({number}) {thing.size} {thing.colour} {thing.material} {thing.shape}" in thought
        if row.question.answer.isdigit():
            assert re.findall(r"\d+", thought)[-1] == row.question.answer
        assert row.demonstration == f"<think>{thought}</think><answer>{row.question.answer}</answer>"
        check_gold(row.question.answer)


def _left(scene: Scene, thing: Thing) -> float:
    middle = np.array([[*thing.place, SIZES[thing.size]]], dtype=np.float32).T
    return float(Camera.of(scene.view).project(middle)[0, 0])


def test_a_picture_shows_the_colour_the_shadow_and_the_ground() -> None:
    thing = Thing("sphere", "red", "large", "matte", (0.0, 0.0), 0.0)
    picture = np.asarray(render(Scene((thing,), GROUND, VIEW))).astype(int)
    empty = np.asarray(render(Scene((), GROUND, VIEW))).astype(int)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    camera = Camera.of(VIEW)

    def at(x: float, y: float, z: float) -> tuple[np.ndarray, np.ndarray]:
        column, row = camera.project(np.array([[x, y, z]], dtype=np.float32).T)[:, 0]
        return picture[int(row), int(column)], empty[int(row), int(column)]

    red, _ = at(0, 0, 0.9)
    assert red[0] > red[1] + 80 and red[0] > red[2] + 80
    # The light comes from behind on the left (130 degrees), so the shadow falls to the right and to the front.
    shadow, ground = at(0.55, -0.65, 0)
    assert shadow.mean() < 0.75 * ground.mean()
    lit, ground = at(-2.5, 2.5, 0)
    assert lit == pytest.approx(ground, abs=3)
    assert np.ptp(ground) < 20  # grey


@pytest.mark.parametrize("material", MATERIALS)
def test_a_metal_thing_mirrors_and_a_matte_one_does_not(material: str) -> None:
    thing = Thing("sphere", "blue", "large", material, (0.0, 0.0), 0.0)
    neighbour = Thing("cube", "yellow", "large", "matte", (1.7, -0.6), 20.0)
    alone, together = (np.asarray(render(Scene(t, GROUND, VIEW))).astype(int) for t in ((thing,), (thing, neighbour)))
    camera = Camera.of(VIEW)
    own = look(camera, solids_of(thing, 0), 1, 1).solid >= 0
    before = look(camera, solids_of(neighbour, 0), 1, 1).solid >= 0
    changed = (np.abs(alone - together).sum(axis=2) > 30) & own & ~before
    assert (changed.sum() > 100) == (material == "metal")


def test_the_same_row_whatever_else_is_drawn() -> None:
    first = task.draw_row("test", 5, seed=11)
    assert first == drawn("test", 5)
    assert render(first.scene).tobytes() == render(drawn("test", 5).scene).tobytes()
    assert task.draw_row("test", 5, seed=12) != first


def test_splits_share_no_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """With four kinds of things there are 65 inventories: drawn without regard to splits, they would meet."""
    for name, few in (("COLOURS", {"red": COLOURS["red"]}), ("MATERIALS", ("matte",)), ("SOLIDS", ("cube", "sphere"))):
        monkeypatch.setattr(placement, name, few)
    inventories = {
        split: {
            tuple(sorted(thing.kind for thing in task.draw_row(split, number, seed=11, level="easy").scene.things))
            for number in range(20)
        }
        for split in ("train", "validation", "test", "shifted")
    }
    assert min(map(len, inventories.values())) > 1
    for one, other in itertools.combinations(inventories, 2):
        assert not inventories[one] & inventories[other]


def test_files(tmp_path: Path) -> None:
    arguments = {"train_rows": 2, "validation_rows": 1, "test_rows": 1, "seed": 0, "level": "easy"}
    plain = task.write_counting_task(tmp_path / "a", **arguments)
    assert not (plain / "shifted.jsonl").exists()
    more = task.write_counting_task(tmp_path / "b", **arguments, shifted_rows=2)
    assert len((more / "shifted.jsonl").read_text().splitlines()) == 2
    assert (plain / "train.jsonl").read_bytes() == (more / "train.jsonl").read_bytes()
    with pytest.raises(ValueError, match="shifted_rows=-1|shifted=-1"):
        task.write_counting_task(tmp_path / "c", **arguments, shifted_rows=-1)
    with pytest.raises(ValueError, match="split='dev': must be one of train, validation, test, shifted"):
        task.draw_row("dev", 0, seed=0)
