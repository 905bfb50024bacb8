"""One flat record per score, and the CSV made of them."""

import csv
import io

from driftkit.comparison.run_summary import summarise
from driftkit.comparison.score_records import FIELDS, score_records, speed_of, to_csv
from driftkit.comparison.score_table import score_tables
from driftkit.comparison.speed import Speed
from tests.scoring.fakes import evaluation, make_run


def test_a_record_holds_score_cost_and_judge_of_a_row(tmp_path):
    runs = [summarise(make_run(tmp_path / name), label=name) for name in ("a", "unscored")]
    tables = score_tables([("a", evaluation(3.0, seed=s, nfe=50)) for s in (0, 1)], runs)
    first, second = score_records(tables, runs, [Speed("a", "ddim", 50, 5, 8.5, 1.9, 1.0)])
    assert tuple(first) == tuple(second) == FIELDS
    assert (first["run"], first["fid"], first["fid_values"], first["floor"]) == ("a", 3.0, "3 3", 1.5)
    assert (first["images_per_second"], first["speed_scaled"], first["train_seconds"]) == (8.5, True, 12.5)
    assert (second["run"], second["fid"], second["parameters"]) == ("unscored", None, 1_234_567)


def test_options_of_a_sampler_do_not_hide_its_speed():
    speeds = [Speed("a", "ddim", 50, 50, 8.5, 1.9, 1.0)]
    assert speed_of(speeds, "a", "ddim eta=1.0", 50) is speeds[0]
    assert speed_of(speeds, "a", "ddim", 10) is None
    assert speed_of(speeds, "b", "ddim", 50) is None


def test_csv_keeps_hostile_names_in_their_cell():
    names = ['a,"b"\n<script>', "=cmd()", "@x"]
    records = [dict.fromkeys(FIELDS) | {"run": name, "fid": -1.5} for name in names]
    lines = list(csv.DictReader(io.StringIO(to_csv(records))))
    assert [line["run"] for line in lines] == [names[0], "'=cmd()", "'@x"]
    assert {line["fid"] for line in lines} == {"-1.5"}
