"""What importing keyglue does: nothing but importing, quickly, with the core dependencies only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

SIDE_EFFECTS = """
import json, logging, os, sys, threading, warnings
import torch, PIL.Image

def state():
    return {
        "environment": dict(os.environ),
        "handlers": [repr(handler) for handler in logging.getLogger().handlers],
        "loggers with handlers": sorted(
            name for name, logger in logging.Logger.manager.loggerDict.items() if getattr(logger, "handlers", None)
        ),
        "threads": threading.active_count(),
        "filters": [repr(entry) for entry in warnings.filters],
        "default dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "cudnn": [torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "intra-op threads": torch.get_num_threads(),
        "random": torch.random.get_rng_state().sum().item(),
        "largest image": PIL.Image.MAX_IMAGE_PIXELS,
    }

before = state()
sys.path.insert(0, sys.argv[1])
import minimal_install
names = minimal_install.import_every_module()
import keyglue
for name in keyglue.__all__:
    getattr(keyglue, name)
after = state()
print(json.dumps({
    "changed": {key: [before[key], after[key]] for key in before if before[key] != after[key]},
    "optional": sorted(set(minimal_install.OPTIONAL) & set(sys.modules)),
    "modules": len(names),
}))
"""

COST = """
import sys, time
import torch, numpy
start = time.process_time()  # of the processor, which other work on the machine does not stretch
import keyglue
print(time.process_time() - start)
"""


def run(code: str, *arguments: str, file: Path | None = None) -> str:
    what = ["-c", code] if file is None else [str(file)]
    done = subprocess.run(
        [sys.executable, "-W", "error", *what, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_has_no_side_effects_and_loads_no_optional_library() -> None:
    found = json.loads(run(SIDE_EFFECTS, str(HERE)))
    assert found["changed"] == {}
    assert found["optional"] == []
    assert found["modules"] > 30


def test_import_keyglue_imports_no_torch() -> None:
    assert run("import sys, keyglue; print({'torch', 'numpy', 'PIL', 'rich', 'typer'} & set(sys.modules))") == "set()\n"


def test_import_keyglue_adds_less_than_a_tenth_of_a_second_to_torch() -> None:
    assert float(run(COST)) < 0.1


def test_without_extras_every_module_imports_and_two_photographs_match() -> None:
    found = re.fullmatch(r"(\d+) modules, (\d+) matches\n", run("", file=HERE / "minimal_install.py"))
    assert found is not None
    assert int(found[1]) > 30
    assert int(found[2]) > 50
