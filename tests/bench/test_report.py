"""The report command, on small result files made up here."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[2] / "bench" / "report.py"
if not REPORT.exists():
    pytest.skip("this copy has no benchmarks", allow_module_level=True)
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

PNG = b"\x89PNG\r\n\x1a\n"


def operator(case, size, contender, seconds, over_eager, rate=10.0, fraction=None, unit="GB/s"):
    return {
        "kind": "operator",
        "case": case,
        "size": size,
        "contender": contender,
        "seconds": seconds,
        "rate": rate,
        "unit": unit,
        "fraction": fraction,
        "over_eager": over_eager,
    }


def batch(loop, seconds, over=None):
    return {
        "kind": "em-batch",
        "setting": "deep",
        "loop": loop,
        "seconds": seconds,
        "ideal_seconds": 0.02,
        "multiple_of_ideal": seconds / 0.02,
        "over_pyromancy_ai": over,
    }


RESULT = {
    "machine_info": {
        "bench": {
            "device": "Abacus 9",
            "instruction_set": "BEADS",
            "threads": 3,
            "pyromancy": "1.2",
            "torch": "2.13.0",
            "copy_gb_per_s": 12.5,
            "product_gflop_per_s": 180.0,
        }
    },
    "datetime": "2026-02-03T04:05:06+00:00",
    "benchmarks": [
        {"name": str(i), "stats": {}, "extra_info": row}
        for i, row in enumerate(
            [
                operator("energy", [64, 128], "native", 4e-6, 2.5),
                operator("energy", [64, 128], "eager", 1e-5, 1.0),
                operator("energy", [16384, 1024], "eager", 0.02, 1.0, rate=6.7, fraction=0.54),
                operator("energy", [16384, 1024], "torch.compile", 0.0125, 1.6, rate=10.7, fraction=0.86),
                operator("energy", [16384, 1024], "reference", 0.021, 0.95, rate=6.4, fraction=0.51),
                operator("energy", [16384, 1024], "native", 0.0111, 1.8, rate=12.1, fraction=0.967),
                operator("multivariate_energy", [256, 256], "native", 3e-4, 3.0, 55.0, 0.31, "GFLOP/s"),
                batch("plain, native", 0.12, over=1.75),
                batch("pyromancy-ai", 0.21),
                batch("backprop", 0.005),
            ]
        )
    ],
}

TABLE = """\
## Abacus 9 (BEADS), 3 threads; pyromancy 1.2, torch 2.13.0; 2026-02-03

Measured in the run: copy rate 12.5 GB/s, matrix-product rate 180 GFLOP/s.

### Operators

| operator | size | eager | torch.compile over eager | reference over eager | native over eager \
| native: time | native: rate | native: of ceiling |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| energy | 64 x 128 | 10 us |  |  | 2.5x | 4 us | 10.0 GB/s |  |
| energy | 16384 x 1024 | 20 ms | 1.6x | 0.95x | 1.8x | 11.1 ms | 12.1 GB/s | 0.97 |
| multivariate_energy | 256 x 256 |  |  |  | 3x | 300 us | 55.0 GFLOP/s | 0.31 |

### EM batch, and how many times the ideal time it takes

| EM batch | ideal | backprop | pyromancy-ai | plain, native |
| --- | ---: | ---: | ---: | ---: |
| deep | 20 ms | 5 ms = 0.25x | 210 ms = 10.5x | 120 ms = 6x |

### EM batch, and how many times faster than pyromancy-ai it is

| EM batch | plain, native |
| --- | ---: |
| deep | 1.75x |
"""


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("bench_report", REPORT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def write(tmp_path):
    def to(name, content=RESULT):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return to


def without(kind):
    result = copy.deepcopy(RESULT)
    result["benchmarks"] = [b for b in result["benchmarks"] if b["extra_info"]["kind"] != kind]
    return result


def test_writes_table_and_picture(report, write, tmp_path, capsys):
    table, picture = tmp_path / "out.md", tmp_path / "out.png"
    assert report.main([write("a.json"), "--table", str(table), "--picture", str(picture)]) == 0
    assert table.read_text() == TABLE
    assert picture.read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert "Abacus 9" in printed
    assert "120 ms = 6x" in printed


def test_puts_several_files_under_each_other(report, write, tmp_path):
    table, picture = tmp_path / "out.md", tmp_path / "out.png"
    later = copy.deepcopy(RESULT)
    later["datetime"] = "2027-01-01"
    files = [write("a.json"), write("b.json", later)]
    assert report.main([*files, "--table", str(table), "--picture", str(picture)]) == 0
    assert table.read_text() == TABLE + "\n" + TABLE.replace("2026-02-03", "2027-01-01")
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize("missing", ["operator", "em-batch"])
def test_reports_a_run_of_one_suite(report, write, tmp_path, missing):
    table, picture = tmp_path / "out.md", tmp_path / "out.png"
    file = write("a.json", without(missing))
    assert report.main([file, "--table", str(table), "--picture", str(picture)]) == 0
    assert ("### Operators" in table.read_text()) == (missing == "em-batch")
    assert ("### EM batch" in table.read_text()) == (missing == "operator")
    assert picture.read_bytes().startswith(PNG)


FOREIGN = {
    "another JSON": ('{"a": 1}', "not a result file of this suite"),
    "a list": ("[]", "not a result file of this suite"),
    "another suite's benchmark": (
        json.dumps({**RESULT, "benchmarks": [{"extra_info": {}}]}),
        "not a result file of this suite (KeyError: 'kind')",
    ),
    "no benchmark": (json.dumps({**RESULT, "benchmarks": []}), "holds no benchmarks"),
    "no JSON": ("name,time\n", "not JSON"),
    "nothing": ("", "not JSON"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_says_what_is_wrong_with_a_file(report, write, capsys, kind):
    content, words = FOREIGN[kind]
    file = write("foreign.json", content)
    assert report.main([file]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"report: {file}: ")
    assert words in printed.err


def test_says_that_a_file_is_missing(report, tmp_path, capsys):
    file = str(tmp_path / "none.json")
    assert report.main([file]) == 2
    assert f"{file}: no such file; `pytest bench --benchmark-json={file}` writes one" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--table", "--picture"])
def test_says_that_it_cannot_write(report, write, tmp_path, capsys, option):
    target = str(tmp_path / "no" / "folder.png")
    assert report.main([write("a.json"), option, target]) == 2
    assert f"{target}: cannot be written: No such file or directory" in capsys.readouterr().err
