"""A recipe file says all that a model is trained with, and nothing else."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
import recipe

FOLDER = Path(recipe.__file__).with_name("recipes")
KINDS = {"w1_cpu": recipe.W1, "w1_gpu": recipe.W1, "r2": recipe.R2, "r2_small": recipe.R2,
         "f": recipe.Fingerprint, "f_check": recipe.Comparator}  # fmt: skip


def test_every_model_has_a_recipe_and_every_recipe_is_read() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(KINDS)
    for name, kind in KINDS.items():
        assert recipe.read(FOLDER / f"{name}.toml", kind).run.steps > 0


@pytest.mark.parametrize("name", KINDS)
def test_what_a_checkpoint_stores_gives_the_same_recipe_again(name: str) -> None:
    read = recipe.read(FOLDER / f"{name}.toml", KINDS[name])
    assert recipe.build(recipe.table(read), KINDS[name], name) == read


@pytest.mark.parametrize("name", KINDS)
def test_exporters_find_every_setting_by_a_name_of_its_own(name: str) -> None:
    stored = recipe.table(recipe.read(FOLDER / f"{name}.toml", KINDS[name]))
    assert len(recipe.flat(stored)) == sum(len(section) for section in stored.values())


def test_settings_of_checkpoints_without_sections_are_found() -> None:
    assert recipe.flat({"code_bits": 160, "batch": 12}) == {"code_bits": 160, "batch": 12}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("seed = 1", "sead = 1"), "unknown key sead; did you mean seed"),
        (("seed = 1\n", ""), "seed is missing"),
        (("seed = 1", 'seed = "1"'), "int is wanted"),
        (("seed = 1", "seed = true"), "int is wanted"),
        (("severity = [0.4, 1.0]", "severity = 0.4"), "two numbers are wanted"),
        (("[loss]", "[losses]"), "unknown key losses; did you mean loss"),
    ],
)
def test_a_wrong_key_is_an_error_that_names_it(
    tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    text = (FOLDER / "w1_cpu.toml").read_text("utf-8")
    assert change[0] in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(*change, 1), "utf-8")
    with pytest.raises(SystemExit, match=told):
        recipe.read(path, recipe.W1)


def test_the_gpu_recipe_differs_only_where_it_says_why() -> None:
    cpu, gpu = (tomllib.loads((FOLDER / f"w1_{n}.toml").read_text("utf-8")) for n in ("cpu", "gpu"))
    differing = {k for section in cpu for k, v in cpu[section].items() if gpu[section][k] != v}
    assert differing == {
        "steps", "batch", "attacks", "average", "report_every", "save_every", "validate_every",
        "patterns", "network", "refresh_every", "together", "features",
    }  # fmt: skip
    assert cpu["model"] == gpu["model"]


def test_recipes_cannot_be_changed() -> None:
    read = recipe.read(FOLDER / "r2.toml", recipe.R2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.run.steps = 1  # type: ignore[misc]
