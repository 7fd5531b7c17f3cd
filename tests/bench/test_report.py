"""The report command, on small result files made up here."""

import copy
import importlib
import json
import subprocess
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


def batch(loop, seconds, over=None, **more):
    return {
        "kind": "em-batch",
        "setting": "deep",
        "loop": loop,
        "seconds": seconds,
        "ideal_seconds": 0.02,
        "multiple_of_ideal": seconds / 0.02,
        "over_pyromancy_ai": over,
        **more,
    }


def esteps(loop, seconds):
    return {
        "kind": "e-steps",
        "setting": "deep",
        "loop": loop,
        "seconds": seconds,
        "ideal_seconds": 0.016,
        "multiple_of_ideal": seconds / 0.016,
    }


def scaling(at, seconds):
    return {
        "kind": "scaling",
        "at": at,
        "base": "784-256-10, batch 128, 16 E-steps",
        "seconds": seconds,
        "plain_seconds": 4 * seconds,
        "over_plain": 4.0,
        "ideal_seconds": seconds / 2,
    }


GENERAL = {
    "kind": "general",
    "network": "VGG5",
    "batch": 128,
    "steps": 8,
    "executor": "graph",
    "seconds": 0.5,
    "plain_seconds": 0.8,
    "over_plain": 1.6,
    "em_seconds": 0.4,
    "plain_over_em": 2.0,
    "processor_over_em": 1.9,
    "esteps_over": {"autograd": 2.3},
    "batches_over": {"autograd": 2.5, "torch.compile": 1.7},
}
INCREMENTAL = {
    "kind": "incremental",
    "setting": "small",
    "loop": "InferenceLoop",
    "steps": 20,
    "seconds": 0.125,
    "in_a_row_seconds": 0.1,
    "overhead_of_step": 0.25,
    "overhead_of_estep": 0.714,
}

SWEEP_COST = {
    "kind": "sweep-cost",
    "problem": "784-128x19-10 tanh, batch 64",
    "seconds": 0.0006,
    "descent_seconds": 0.0005,
    "over_descent": 1.2,
}


SPARSE = {
    "kind": "sparse",
    "problem": "500 patches of 8 x 8, 128 atoms",
    "contender": "lasso_cd",
    "gap": 1e-6,
    "steps": 200,
    "seconds": 0.02,
    "theirs": 0.1,
    "over": 5.0,
}

LAWS = {
    "kind": "laws",
    "setting": "pcx",
    "law": "categorical output",
    "seconds": 0.002,
    "gaussian_seconds": 0.0019,
    "over_gaussian": 1.05,
    "over_jax": 1.5,
}


NETWORK = {
    "kind": "network",
    "network": "two parents, 3 x 256",
    "batch": 128,
    "steps": 20,
    "seconds": 0.02,
    "over_jax": 1.25,
    "processor_seconds": 0.018,
    "jax_processor_seconds": 0.027,
    "processor_seconds_without_steps": 0.008,
    "processor_seconds_of_products_and_adam": 0.016,
    "products": 1e8,
    "jax_flops": 1.05e8,
}


def equilibrium(contender, rate, sweeps, seconds, of_ours=None):
    gaps = (0.1, 0.01, 0.0001)
    return {
        "kind": "equilibrium",
        "problem": "784-128x19-10 tanh, batch 64",
        "contender": contender,
        "rate": rate,
        "sweeps": {str(gap): n for gap, n in zip(gaps, sweeps, strict=True)},
        "seconds": {str(gap): t for gap, t in zip(gaps, seconds, strict=True)},
        "given_up": 2000,
        "per_sweep": 0.001,
        "of_ours": of_ours,
        "curve": [(0, 1.0), *((n, gap / 2) for n, gap in zip(sweeps, gaps, strict=True) if n)],
    }


DISTURBED = batch("InferenceLoop, native", 0.04, over=5.25, over_jax=0.5)

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
        {"name": str(i), "stats": {"median": 1.0, "iqr": 0.31 if row is DISTURBED else 0.3}, "extra_info": row}
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
                batch("JAX", 0.02),
                DISTURBED,
                batch("EM, native", 0.032, over_jax=0.625, over_inference_loop=1.25),
                batch("EM.epoch, native", 0.03, over_inference_loop=1.5),
                esteps("InferenceLoop, native", 0.032),
                scaling({"width": 512}, 0.06),
                scaling({"width": 256, "batch": 128}, 0.02),
                scaling({"batch": 8}, 0.002),
                GENERAL,
                INCREMENTAL,
                equilibrium("Accelerated()", None, (2, 3, 10), (0.002, 0.003, 0.01)),
                equilibrium("descent, best rate", 0.304, (45, 1500, None), (0.045, 1.5, None), of_ours=500.0),
                equilibrium("LBFGS()", None, (None, None, None), (None, None, None)),
                SWEEP_COST,
                SPARSE,
                LAWS,
                NETWORK,
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

| EM batch | ideal | backprop | pyromancy-ai | JAX | plain, native | InferenceLoop, native \
| EM, native | EM.epoch, native |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| deep | 20 ms | 5 ms = 0.25x | 210 ms = 10.5x | 20 ms = 1x | 120 ms = 6x | ~40 ms = 2x | 32 ms = 1.6x | 30 ms = 1.5x |
| deep, E-steps alone | 16 ms |  |  |  |  | 32 ms = 2x |  |  |

~ disturbed: the interquartile range of the times exceeds 0.3 of their median

### EM batch, and how many times faster than pyromancy-ai it is

| EM batch | plain, native | InferenceLoop, native |
| --- | ---: | ---: |
| deep | 1.75x | ~5.25x |

~ disturbed: the interquartile range of the times exceeds 0.3 of their median

### EM batch, and how many times faster than JAX it is

| EM batch | InferenceLoop, native | EM, native |
| --- | ---: | ---: |
| deep | ~0.5x | 0.625x |

~ disturbed: the interquartile range of the times exceeds 0.3 of their median

### EM batch, and how many times faster than InferenceLoop it is

| EM batch | EM, native | EM.epoch, native |
| --- | ---: | ---: |
| deep | 1.25x | 1.5x |

### EM batch, one thing varied around 784-256-10, batch 128, 16 E-steps

| varied | ideal | InferenceLoop | of ideal | plain | plain over InferenceLoop |
| --- | ---: | ---: | ---: | ---: | ---: |
| width 256 | 10 ms | 20 ms | 2x | 80 ms | 4x |
| width 512 | 30 ms | 60 ms | 2x | 240 ms | 4x |
| batch 8 | 1 ms | 2 ms | 2x | 8 ms | 4x |
| batch 128 | 10 ms | 20 ms | 2x | 80 ms | 4x |

### EM batch of networks other than chains

| EM batch | plain | InferenceLoop | plain over InferenceLoop | EM | plain over EM | in processor time | compiled over EM | E-steps, plain | E-steps, compiled | executor |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| VGG5, batch 128, 8 E-steps | 800 ms | 500 ms | 1.6x | 400 ms | 2x | 1.9x | 1.7x | 2.3x | - | graph |

### Incremental inference learning, and what an M-step after every E-step adds

| T E-steps and T M-steps | back to back | interleaved | overhead | overhead, of the E-steps' time |
| --- | ---: | ---: | ---: | ---: |
| small, InferenceLoop, T = 20 | 100 ms | 125 ms | 25% | 71.4% |

### Sweeps and time to a share of the gap to the minimum

| problem | method | rate | to 0.1 | to 0.01 | to 0.0001 | a sweep | over Accelerated(), to 0.01 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 784-128x19-10 tanh, batch 64 | Accelerated() |  | 2 = 2 ms | 3 = 3 ms | 10 = 10 ms | 1 ms |  |
| 784-128x19-10 tanh, batch 64 | descent, best rate | 0.304 | 45 = 45 ms | 1,500 = 1.5 s | > 2,000 | 1 ms | 500x |
| 784-128x19-10 tanh, batch 64 | LBFGS() |  | > 2,000 | > 2,000 | > 2,000 | 1 ms |  |

### What a sweep costs

| problem | E-step of descent | sweep of Accelerated() | over descent |
| --- | ---: | ---: | ---: |
| 784-128x19-10 tanh, batch 64 | 500 us | 600 us | 1.2x |

### Sparse codes to the duality gap of scikit-learn's

| sparse codes | gap | FISTA's steps | FISTA | scikit-learn's | scikit-learn over FISTA |
| --- | ---: | ---: | ---: | ---: | ---: |
| 500 patches of 8 x 8, 128 atoms, lasso_cd | 1e-06 | 200 | 20 ms | 100 ms | 5x |

### EM batch with another law, beside Gaussian nodes

| EM batch | a node's law | EM | all Gaussian | over that | JAX over EM |
| --- | ---: | ---: | ---: | ---: | ---: |
| pcx | categorical output | 2 ms | 1.9 ms | 1.05 | 1.5x |

### Networks of Linear layers beside the JAX scan

| EM batch | EM | JAX over EM | processor time | without E-steps | JAX's | JAX's over EM's | products of an E-step | XLA's count of it | rate of E-steps | products and Adam alone | JAX's over these |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| two parents, 3 x 256, batch 128, 20 E-steps | 20 ms | 1.25x | 18 ms | 8 ms | 27 ms | 1.5x | 100.0 Mflop | 105.0 Mflop | 200 GFLOP/s | 16 ms | 1.69x |
"""  # noqa: E501


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPORT.parents[1])
        yield importlib.import_module("bench.report")


@pytest.fixture
def write(tmp_path):
    def to(name, content=RESULT):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return to


def only(*kinds):
    result = copy.deepcopy(RESULT)
    result["benchmarks"] = [b for b in result["benchmarks"] if b["extra_info"]["kind"] in kinds]
    return result


@pytest.mark.slow
def test_writes_table_and_pictures(report, write, tmp_path, capsys):
    table, picture, scaling = (tmp_path / name for name in ("out.md", "out.png", "scaling.png"))
    options = ["--table", str(table), "--picture", str(picture), "--scaling", str(scaling)]
    assert report.main([write("a.json"), *options]) == 0
    assert table.read_text() == TABLE
    assert picture.read_bytes().startswith(PNG)
    assert scaling.read_bytes().startswith(PNG)
    assert picture.read_bytes() != scaling.read_bytes()
    printed = capsys.readouterr().out
    assert "Abacus 9" in printed
    assert "120 ms = 6x" in printed


@pytest.mark.slow
def test_puts_several_files_under_each_other(report, write, tmp_path):
    table, picture, scaling = (tmp_path / name for name in ("out.md", "out.png", "scaling.png"))
    later = copy.deepcopy(RESULT)
    later["datetime"] = "2027-01-01"
    files = [write("a.json"), write("b.json", later)]
    options = ["--table", str(table), "--picture", str(picture), "--scaling", str(scaling)]
    assert report.main([*files, *options]) == 0
    assert table.read_text() == TABLE + "\n" + TABLE.replace("2026-02-03", "2027-01-01")
    assert picture.read_bytes().startswith(PNG)
    assert scaling.read_bytes().startswith(PNG)


HEADINGS = {
    "operator": ["### Operators"],
    "em-batch": ["### EM batch, and how many times the", *["### EM batch, and how many times faster"] * 3],
    "e-steps": ["### EM batch, and how many times the"],
    "scaling": ["### EM batch, one thing varied"],
    "general": ["### EM batch of networks other than chains"],
    "incremental": ["### Incremental"],
    "equilibrium": ["### Sweeps and time"],
    "sweep-cost": ["### What a sweep costs"],
    "sparse": ["### Sparse codes"],
    "laws": ["### EM batch with another law"],
    "network": ["### Networks of Linear layers"],
}


def test_a_run_without_jax_has_no_column_for_it(report, write, tmp_path):
    result, table = copy.deepcopy(RESULT), tmp_path / "out.md"
    rows = [b["extra_info"] for b in result["benchmarks"]]
    result["benchmarks"] = [b for b in result["benchmarks"] if b["extra_info"].get("loop") != "JAX"]
    for row in rows:
        row.pop("over_jax", None)  # as in files of before it took part
    assert report.main([write("a.json", result), "--table", str(table)]) == 0
    assert "JAX" not in table.read_text()


def test_draws_equilibria(report, write, tmp_path):
    """Who was timed, and with how much time; who never came to a gap is not in it."""
    picture = tmp_path / "race.svg"
    assert report.main([write("a.json"), "--equilibrium", str(picture)]) == 0
    text = picture.read_text()
    assert "Accelerated(): 3 ms to 1%" in text
    assert "descent at its best rate: 1,500 ms to 1%" in text
    assert "diffrax" not in text


@pytest.mark.parametrize("kind", HEADINGS)
def test_reports_a_run_of_one_suite(report, write, tmp_path, kind):
    table, picture, scaling = (tmp_path / name for name in ("out.md", "out.png", "scaling.png"))
    options = ["--table", str(table), "--picture", str(picture), "--scaling", str(scaling)]
    options += ["--equilibrium", str(tmp_path / "race.svg")]
    assert report.main([write("a.json", only(kind)), *options]) == 0
    headings = [line for line in table.read_text().splitlines() if line.startswith("###")]
    assert len(headings) == len(HEADINGS[kind])
    assert all(map(str.startswith, headings, HEADINGS[kind]))
    assert picture.read_bytes().startswith(PNG)
    assert scaling.read_bytes().startswith(PNG)


def test_is_a_script(write, tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPORT), write("a.json")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "120 ms = 6x" in done.stdout


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


@pytest.mark.parametrize("option", ["--table", "--picture", "--scaling", "--equilibrium"])
def test_says_that_it_cannot_write(report, write, tmp_path, capsys, option):
    target = str(tmp_path / "no" / "folder.png")
    assert report.main([write("a.json"), option, target]) == 2
    assert f"{target}: cannot be written: No such file or directory" in capsys.readouterr().err
