"""A field of a settings model becomes an option; all commands resolve their settings by one precedence."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from driftkit.cli.app import explain
from driftkit.cli.options import FLAGS, Given, with_settings
from driftkit.config.settings import Option, Settings
from driftkit.errors import UsageError

PANEL = "Bakery"


class Oven(Settings):
    degrees: Annotated[float, Option(PANEL, ("--degrees", "-d"))] = Field(180.0, gt=0, description="heat")
    fan: Annotated[bool, Option(PANEL)] = Field(False, description="turn the air")


class Bake(Settings):
    loaves: Annotated[int, Option(PANEL, ("--loaves", "-n"))] = Field(2, ge=1, description="number of loaves")
    kind: Annotated[Literal["rye", "wheat"] | None, Option(PANEL, default="the baker's")] = Field(
        None, description="flour"
    )
    seeds: Annotated[tuple[str, ...], Option(PANEL)] = Field((), description="strewn on top")
    baskets: Annotated[tuple[str, ...] | str, Option(PANEL)] = Field((), description="one text or several")
    output: Annotated[Path | None, Option(PANEL, ("--output", "-o"))] = Field(None, description="basket")
    minutes: int = Field(40, description="without an option")
    oven: Oven = Oven()


@pytest.fixture
def bake(monkeypatch):
    monkeypatch.setitem(FLAGS, "bake", {})
    made = []

    def command(*, where: str = "here", settings: Bake) -> None:
        """Bake."""
        made.append((where, settings))

    app = typer.Typer(rich_markup_mode="rich")
    app.command()(with_settings("bake", Bake)(command))

    def run(*words, fails=None):
        result = CliRunner().invoke(app, list(words))
        if fails is None:
            assert result.exception is None, result.output
            return made[-1][1]
        assert isinstance(result.exception, UsageError)
        message = explain(result.exception, ["bake"])[1]
        assert fails in message
        return message

    run.app = app
    return run


def test_defaults_are_those_of_the_fields(bake):
    assert bake() == Bake()


def test_options_set_fields_of_all_types(bake):
    words = ("-n", "3", "--kind", "rye", "--seeds", "a", "--seeds", "b", "-o", "x", "-d", "200", "--fan")
    assert bake(*words) == Bake(
        loaves=3, kind="rye", seeds=("a", "b"), output=Path("x"), oven=Oven(degrees=200.0, fan=True)
    )


def test_a_switch_can_be_turned_off(bake, tmp_path):
    assert not bake("--set", "oven.fan=true", "--no-fan").oven.fan


def test_precedence(bake, tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text("loaves = 3\nminutes = 3\nkind = 'rye'\n[oven]\ndegrees = 3\n")
    monkeypatch.setenv("DRIFTKIT_BAKE_LOAVES", "4")
    monkeypatch.setenv("DRIFTKIT_BAKE_DEGREES", "4")
    monkeypatch.setenv("DRIFTKIT_BAKE_SET", "minutes=4")
    settings = bake("--config", str(tmp_path / "c.toml"), "--set", "oven.degrees=5", "--set", "minutes=5", "-n", "6")
    assert (settings.kind, settings.loaves, settings.oven.degrees, settings.minutes) == ("rye", 6, 5.0, 5)


def test_given_leaves_resolution_to_the_command(monkeypatch):
    monkeypatch.setitem(FLAGS, "bake", {})
    seen = []

    def command(*, given: Given) -> None:
        seen.append(given)

    app = typer.Typer()
    app.command()(with_settings("bake", Bake)(command))
    assert CliRunner().invoke(app, ["--loaves", "3", "--set", "minutes=1"]).exit_code == 0
    assert seen == [Given(assignments=("minutes=1",), options={"loaves": 3})]


def test_errors_name_the_option_where_it_was_given(bake):
    bake("--kind", "oat", fails="--kind: expected rye or wheat, got 'oat'")
    bake("--degrees", "-3", fails="--degrees: expected greater than 0, got -3.0")


def test_errors_name_key_and_origin_elsewhere(bake, monkeypatch):
    bake("--set", "loaves=0", fails="loaves (from --set)")
    bake("--set", "lofes=0", fails="did you mean loaves")
    monkeypatch.setenv("DRIFTKIT_BAKE_KIND", "oat")
    bake(fails="kind (from environment)")


def test_variables_hold_what_options_hold(bake, monkeypatch):
    monkeypatch.setenv("DRIFTKIT_BAKE_SEEDS", "a b")
    monkeypatch.setenv("DRIFTKIT_BAKE_OUTPUT", "2024")
    monkeypatch.setenv("DRIFTKIT_BAKE_FAN", "1")
    settings = bake()
    assert (settings.seeds, settings.output, settings.oven.fan) == (("a", "b"), Path("2024"), True)


def test_a_variable_of_several_values_has_one_a_line(bake, monkeypatch):
    monkeypatch.setenv("DRIFTKIT_BAKE_SEEDS", "pine nut\n poppy\n")
    monkeypatch.setenv("DRIFTKIT_BAKE_BASKETS", "my basket?lined=a,b")
    assert (bake().seeds, bake().baskets) == (("pine nut", "poppy"), ("my basket?lined=a,b",))
    monkeypatch.setenv("DRIFTKIT_BAKE_BASKETS", "my basket\nbag")
    assert bake().baskets == ("my basket", "bag")


def test_a_misspelt_variable_is_an_error(bake, monkeypatch):
    monkeypatch.setenv("DRIFTKIT_BAKE_LOAFS", "3")
    bake(fails="DRIFTKIT_BAKE_LOAFS: driftkit bake has no such option (did you mean DRIFTKIT_BAKE_LOAVES?)")


def test_messages_from_below_name_the_option(bake):
    message = explain(UsageError("`oven.degrees` 900: expected less; lower `oven.degrees`, or see `README`"), ["bake"])
    assert message == (2, "error: --degrees 900: expected less; lower --degrees, or see `README` [usage]")


def test_help_shows_description_default_range_and_choices(bake):
    text = CliRunner().invoke(bake.app, ["--help"], env={"COLUMNS": "160"}).output
    for words in (
        "Number of loaves. [default: 2; at least 1]",
        "x>=1",
        "rye|wheat",
        "the baker's",
        "--no-fan",
        "Bakery",
    ):
        assert words in text
