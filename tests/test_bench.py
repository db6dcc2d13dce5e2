"""The benchmark's own arithmetic and what it writes; the measures are run by `make bench`."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.bench import enqueue, record
from tests.bench.__main__ import parse, wanted_of
from tests.bench.chart import chart
from tests.bench.databases import Database
from tests.bench.figures import Case, Figure, number, percentile, repeat
from tests.bench.flat import EMPTY, relative
from tests.bench.fleet import Chore, computed, simulated, split
from tests.bench.machine import processor
from tests.bench.ours import dbtasks
from tests.bench.peers import dj_queue, procrastinate
from tests.bench.pickup import delays_of, times
from tests.bench.record import Record
from tests.bench.report import BEGIN, CHAPTERS, END, page, quotation, write
from tests.bench.scale import busy, how_many
from tests.bench.table import shown, table

pytestmark = pytest.mark.once

MACHINE = [("Date", "2026-01-31"), ("Processor", "Some CPU, 2 CPUs")]
NOWHERE = Database("postgresql", "postgresql://127.0.0.1:1/nothing")


def figure(*values: float, who: str = "dbtasks", case: str = "1 worker", **changes: str) -> Figure:
    told = {"measure": "drain", "database": "sqlite", "unit": "tasks/s"} | changes
    return Figure(who=who, case=case, values=list(values), **told)


def test_repetitions_take_turns_and_keep_every_value():
    turns: list[str] = []
    rates = {"a": iter([1.0, 9.0, 2.0]), "b": iter([30.0, 10.0, 20.0])}

    def case(name: str) -> Case:
        return Case("dbtasks", name, lambda: turns.append(name) or {"tasks/s": next(rates[name])})

    first, second = repeat("drain", "sqlite", [case("a"), case("b")], 3)
    assert turns == ["a", "b"] * 3
    assert (first.values, first.median, first.low, first.high) == ([1.0, 9.0, 2.0], 2.0, 1.0, 9.0)
    assert (second.case, second.median) == ("b", 20.0)


def test_the_median_of_an_even_number_of_values_is_between_the_middle_two():
    assert figure(1, 100, 3, 5).median == 4


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(200, 0.99, 198), (100, 0.5, 50), (20, 0.99, 20), (1, 0.5, 1)]
)
def test_a_percentile_is_the_nearest_rank(count, share, expected):
    assert percentile(range(count, 0, -1), share) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (100.4, "100"), (99.94, "99.9"), (4.567, "4.57"), (0, "0.00")],
)
def test_numbers_show_three_digits(value, text):
    assert number(value) == text


def test_the_spread_is_shown_where_there_is_one():
    assert shown(figure(300, 100, 200)) == "200 (100 to 300)"
    assert shown(figure(200)) == "200"


def test_a_table_has_a_line_per_case_and_contender_and_a_column_per_unit():
    text = table(
        [
            figure(5, unit="ms, p50"),
            figure(9, unit="ms, p99"),
            figure(7, unit="ms, p50", who="another"),
        ]
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["case", "who", "ms, p50", "ms, p99"]
    assert lines[2:] == [
        ["1 worker", "dbtasks", "5.00", "9.00"],
        ["1 worker", "another", "7.00", ""],
    ]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_a_chart_is_svg_whose_bars_are_as_long_as_the_medians():
    figures = [figure(100, 200, 300), figure(50, who="a <peer>"), figure(0, who="none")]
    text = chart("Drain & more", figures)
    root = ElementTree.fromstring(text)
    bars = [
        float(element.attrib["width"]) for element in root.iter() if element.tag.endswith("}rect")
    ]
    assert bars[0] / bars[1] == pytest.approx(4, rel=0.01)
    spreads = [element for element in root.iter() if element.tag.endswith("}line")]
    assert len(spreads) == 1
    words = "".join(root.itertext())
    assert "Drain & more" in words
    assert "a <peer>" in words
    assert "prefers-color-scheme: dark" in words


def test_a_chart_of_nothing_is_still_a_chart():
    ElementTree.fromstring(chart("Empty", []))


def test_the_page_has_a_chapter_for_each_measure_that_ran_and_names_its_machine():
    figures = [
        figure(100, 200, 300),
        figure(5, measure="pickup", unit="ms, p50", database="mariadb"),
        figure(90, measure="flat", unit="% of empty"),
    ]
    files = page(figures, MACHINE, 3)
    assert sorted(files) == [
        "benchmark.md",
        "images/benchmark-drain-sqlite.svg",
        "images/benchmark-flat-sqlite.svg",
    ]
    text = files["benchmark.md"]
    assert "Some CPU" in text
    assert "median of 3" in text
    assert "newest release" not in text
    assert (
        "* a peer: as it likes it"
        in page(figures, MACHINE, 3, ["a peer: as it likes it"])["benchmark.md"]
    )
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["Drain", "Pick-up", "Flat"]
    assert all(f"]({name})" in text for name in files if name.endswith(".svg"))
    assert "On: " not in text
    places = {("drain", "sqlite"): "Some CPU", ("flat", "sqlite"): "Another CPU"}
    text = page(figures, MACHINE, 3, places=places)["benchmark.md"]
    assert "### Drain on sqlite\n\nOn: Some CPU.\n\n| case" in text
    assert "### Flat on sqlite\n\nOn: Another CPU.\n\n| case" in text


def test_what_is_written_twice_is_there_once(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    quoted = quotation([figure(1234), figure(5, measure="pickup", unit="ms, p50")], MACHINE)
    for _ in range(2):
        write(tmp_path, {"benchmark.md": "page"}, quoted)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert text.count("1,234") == 1
    assert "old" not in text
    assert "Some CPU, 2 CPUs, 2026-01-31" in text
    assert (tmp_path / "docs" / "benchmark.md").read_text() == "page"


def test_a_readme_without_a_place_for_the_figures_is_left_alone(tmp_path: Path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match=re.escape(BEGIN)):
        write(tmp_path, {"benchmark.md": "page"}, "quoted")
    assert not (tmp_path / "docs").exists()


def test_our_readme_has_a_place_for_the_figures():
    text = Path(__file__).parent.with_name("README.md").read_text()
    assert text.index(BEGIN) < text.index(END)


def test_flat_rates_are_shares_of_the_empty_table():
    flat = [figure(100, 400, 200, case=EMPTY), figure(100, 50, case="1 finished")]
    shares = relative([*flat, figure(9, unit="rows deleted/s")])
    assert [(share.case, share.values) for share in shares] == [
        (EMPTY, [50.0, 200.0, 100.0]),
        ("1 finished", [50.0, 25.0]),
    ]


def test_a_task_that_ran_twice_counts_with_its_first_start():
    assert times("3 1.5\n4 2.0\n3 9.0\n") == {3: 1.5, 4: 2.0}


@pytest.mark.parametrize(
    ("milliseconds", "workers", "expected"), [(0, 8, 5000), (10, 4, 800), (5000, 2, 2)]
)
def test_ideal_workers_would_be_busy_for_the_time_that_was_asked_for(
    milliseconds, workers, expected
):
    assert how_many(milliseconds, workers, 2.0, 5000) == expected


def test_a_product_is_one_producer_however_many_kinds_of_worker_it_has():
    contenders = [
        dj_queue.contender(NOWHERE, "python"),
        procrastinate.contender(NOWHERE, "python", 1),
        procrastinate.contender(NOWHERE, "python", 10),
    ]
    assert [peer.name for peer in enqueue.one_of_each(contenders)] == ["dj-queue", "procrastinate"]


def test_options_reach_the_product_by_its_environment():
    env = dbtasks(NOWHERE, prefetch=1).env()
    assert env["DBTASKS_TEST_OPTIONS"] == '{"prefetch": 1}'
    assert env["DBTASKS_TEST_DATABASE_URL"] == NOWHERE.url


def test_the_processor_is_named_where_the_system_tells(tmp_path: Path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: Some  CPU\n\nprocessor : 1\n")
    assert processor(path) == "Some CPU"
    assert processor(tmp_path / "missing")


def test_every_chapter_has_a_measure_and_every_measure_a_chapter():
    folder = Path(__file__).with_name("bench")
    measures = {path.stem for path in folder.glob("*.py") if "\ndef measure(" in path.read_text()}
    assert measures == set(CHAPTERS)
    assert parse(["--measure", "drain", "--quick"]).measure == ["drain"]


def recorded(measure: str, database: str, *values: float, date: str = "2026-01-31") -> Record:
    figures = [figure(*values, measure=measure, database=database)]
    return Record(measure, database, len(values), [("Date", date)], figures, ["a peer: so"])


def test_what_records_say_of_the_machine_is_a_range_where_it_was_measured():
    assert record.span(["3.13", "3.13"]) == "3.13"
    assert record.span(["0.16 ms (of 100)", "0.9 ms (of 100)"]) == "0.16 to 0.9 ms (of 100)"
    assert record.span(["2026-01-31", "2026-02-01"]) == "2026-01-31, 2026-02-01"


def test_figures_stay_on_record_until_the_same_is_measured_again(tmp_path: Path):
    path = tmp_path / "folder" / "figures.json"
    assert record.load(path) == []
    record.keep(path, recorded("drain", "postgresql", 1, 2, 3))
    record.keep(path, recorded("drain", "sqlite", 4))
    record.keep(path, recorded("drain", "postgresql", 9, date="2026-02-01"))
    known = record.load(path)
    assert [each.database for each in known] == ["sqlite", "postgresql"]
    figures = record.figures_of(known, ["postgresql", "sqlite"])
    assert [(each.database, each.values) for each in figures] == [
        ("postgresql", [9]),
        ("sqlite", [4]),
    ]
    assert record.machine_of(known) == [("Date", "2026-01-31, 2026-02-01")]
    assert record.places_of(known) == {}
    assert record.peers_of(known) == ["a peer: so"]


@pytest.mark.parametrize("text", ["", "[1]", '[{"measure": "drain"}]', "{}}"])
def test_a_spoilt_record_is_named(tmp_path: Path, text: str):
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        record.load(path)


def test_only_what_is_missing_is_measured_if_that_is_asked_for():
    known = [recorded("drain", "sqlite", 1), recorded("pickup", "postgresql", 1)]
    words = ["--measure", "drain", "--measure", "pickup"]
    both = ["drain", "pickup"]
    everything = {"sqlite": both, "postgresql": both, "mariadb": both}
    assert wanted_of(parse(words), known) == everything
    assert wanted_of(parse([*words, "--missing"]), known) == everything | {
        "sqlite": ["pickup"],
        "postgresql": ["drain"],
    }
    assert wanted_of(parse(["--missing", *words[:2], "--database", "sqlite"]), known) == {}


@pytest.mark.parametrize("words", [["--quick", "--write"], ["--quick", "--write-only"]])
def test_a_quick_look_is_not_written(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(words)
    assert "--quick" in capsys.readouterr().err


def test_delays_are_those_of_the_tasks_that_were_committed():
    found = delays_of({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.001, 1: 2.002, 2: 3.009, 7: 1.0})
    assert found == {"ms, p50": pytest.approx(2), "ms, p99": pytest.approx(9)}


def test_a_fleet_needs_what_a_node_needs_times_the_nodes():
    chores = [Chore("a", 0.5, lambda node: None, 0.01), Chore("b", 2.0, lambda node: None, 0.001)]
    found = computed(chores, 10)
    assert found == {
        "computed: calls/s": pytest.approx(25),
        "computed: % of one connection": pytest.approx(7),
    }
    assert [(each.who, each.unit) for each in split([figure(1, unit="computed: calls/s")])] == [
        ("computed", "calls/s")
    ]


def test_a_simulated_fleet_plays_every_node():
    played: list[int] = []
    found = simulated([Chore("a", 50.0, played.append)], 20, 1.0)
    assert set(played) == set(range(20))
    assert found["simulated: calls/s"] > 0


def test_a_simulation_tells_what_went_wrong():
    def fail(node: int) -> None:
        raise OSError(f"node {node}")

    with pytest.raises(RuntimeError, match="OSError"):
        simulated([Chore("a", 50.0, fail)], 1, 1.0)


def test_notify_is_compared_by_the_medians():
    share = enqueue.relative(figure(80, 95, 300), figure(100, 10, 1000, who="off"))
    assert (share.values, share.unit, share.who) == ([95.0], "% of notify off", "dbtasks")


def test_a_worker_is_busy_from_its_first_claim_to_its_last_finish():
    def moment(seconds: int) -> str:
        return f"2026-01-31 12:00:{seconds:02}"

    runs = [
        ("a", moment(3), moment(5), "1.5"),
        ("a", moment(1), moment(3), "1.5"),
        ("b", moment(20), moment(26), "3.0"),
    ]
    assert busy(runs) == 0.6
