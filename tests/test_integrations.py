"""The page on other tools: every section runs where its tool is installed, and prints what it shows."""

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest
import torch

import pyromancy as pyro

PAGE = Path(__file__).parents[1] / "docs" / "integrations.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
HEAD, *SECTIONS = PAGE.read_text().split("\n## ")
TOOLS = ("datasets", "lightning", "mlflow", "optuna", "tensorboard")  # which are no part of PyTorch


def tools(code):
    """Those that a section imports."""
    named = re.findall(r"^(?:import|from) (?:torch\.utils\.)?(\w+)", code, re.MULTILINE)
    return [tool for tool in TOOLS if tool in named]


@pytest.mark.parametrize("section", SECTIONS, ids=[section.splitlines()[0] for section in SECTIONS])
def test_a_section_runs(section, monkeypatch, tmp_path):
    found = BLOCK.findall(section)
    assert len(found) == 1
    for tool in tools(found[0][0]):
        pytest.importorskip(tool, reason=f"{tool} is not installed: pip install 'pyromancy-kernels[integrations]'")
    monkeypatch.chdir(tmp_path)  # where tools leave folders
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    scope = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tools say of themselves and of each other
        for code, shown in [*BLOCK.findall(HEAD), *found]:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, "integrations.md", "exec"), scope)
            assert printed.getvalue() == shown


def test_every_tool_is_in_the_extra():
    project = (PAGE.parents[1] / "pyproject.toml").read_text()
    extra = re.search(r"^integrations = (.*)$", project, re.MULTILINE)[1]
    used = {tool for section in SECTIONS for tool in tools(section)}
    assert used == {*TOOLS}
    assert all(tool in extra for tool in TOOLS)


def test_a_prediction_is_exported_for_any_batch_size():
    """Whatever states the network has; without them by `sequential`."""
    net, x = pyro.networks.mlp([8, 16, 4]), torch.rand(10, 8)
    for module in (net, net.sequential()):
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for inputs in (x[:3], torch.rand(21, 8)):
            assert torch.equal(program.module()(inputs), net.predict(inputs))
        assert any("value" in name for name in program.state_dict) == (module is net)
        net.start(x)
