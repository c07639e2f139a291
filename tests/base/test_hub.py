"""Loading from and sending to the Hub, played by a local server: revisions, cache, offline, tokens, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching

pytest.importorskip("huggingface_hub")

MakeModel = Callable[..., LightGlueForKeypointMatching]
Run = Callable[..., Any]


@pytest.fixture
def make_folder(tiny_model: MakeModel, tmp_path: Path) -> Callable[..., Path]:
    """Makes model folders that a number tells apart."""

    def make(mark: float, card: str = "", below: str = "") -> Path:
        model = tiny_model()
        model.config = model.config.replace(extra={"mark": mark})
        with torch.no_grad():
            model.token_confidence[0].token.bias.fill_(mark)
        folder = tmp_path / f"model-{mark}"
        model.save_pretrained(folder / below)
        if card:
            (folder / below / "README.md").write_text(card)
        return folder

    return make


def test_revisions_and_the_cache(hub: Any, run_with_hub: Run, make_folder: Callable[..., Path]) -> None:
    first = hub.add("owner/tiny", make_folder(1.0), "v1")
    hub.add("owner/tiny", make_folder(2.0, card="---\nlicense: mit\n---\n"), "main")
    result = run_with_hub(
        f"""
result = [mark(), mark(revision="v1"), mark(revision="{first}"), Source.split("owner/tiny", {{}})[0].licence]
"""
    )
    assert result == [2.0, 1.0, 1.0, "mit"]
    fetched = [request for request in hub.requests if request.startswith("GET")]
    assert len(fetched) == len(set(fetched)) == 5  # two models and one card, everything once
    hub.requests.clear()
    again = run_with_hub(f'result = [mark(), mark(revision="{first}"), mark(cache_dir="elsewhere")]')
    assert again == [2.0, 1.0, 2.0]
    assert len([request for request in hub.requests if request.startswith("GET")]) == 2  # for the other cache
    assert not any(first in request for request in hub.requests)  # a commit that is cached needs no question
    hub.requests.clear()
    assert run_with_hub("result = mark(force_download=True)") == 2.0
    assert len([request for request in hub.requests if request.startswith("GET")]) == 2


def test_all_files_come_from_one_commit(hub: Any, run_with_hub: Run, make_folder: Callable[..., Path]) -> None:
    hub.add("owner/tiny", make_folder(1.0))
    later = make_folder(2.0)
    hub.after["config.json"] = lambda: hub.add("owner/tiny", later)  # pushed between two files
    assert run_with_hub("result = [mark(), mark()]") == [1.0, 2.0]


def test_subfolders_shards_and_pickles(hub: Any, run_with_hub: Run, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(1.0)
    weights = folder / "model.safetensors"
    tensors = torch.load(_as_pickle(weights), weights_only=True)
    hub.add("owner/tiny", folder, "pickle")
    shard = "model-00001-of-00001.safetensors"
    (folder / "pytorch_model.bin").unlink()
    _write(folder / shard, tensors)
    index = {"weight_map": dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add("owner/tiny", folder, "shards")
    hub.add("owner/tiny", make_folder(2.0, below="a/b"), "below")
    code = """
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching as Model

def load(**where):
    return float(Model.from_pretrained("owner/tiny", **where).token_confidence[0].token.bias.detach())

where = [{"revision": "pickle"}, {"revision": "shards"}, {"revision": "below", "subfolder": "a/b"}]
result = [load(local_files_only=offline, **at) for offline in (False, True) for at in where]
"""
    assert run_with_hub(code) == [1.0, 1.0, 2.0] * 2


def _as_pickle(weights: Path) -> Path:
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.parent / "pytorch_model.bin")
    weights.unlink()
    return weights.parent / "pytorch_model.bin"


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def test_when_the_hub_is_not_to_be_asked(hub: Any, run_with_hub: Run, make_folder: Callable[..., Path]) -> None:
    hub.add("owner/tiny", make_folder(1.0))
    mark, cached, other, revision = run_with_hub(
        """
result = [mark(), mark(local_files_only=True)]
result += [error("owner/other", local_files_only=True), error(revision="v9", local_files_only=True)]
"""
    )
    assert mark == cached == 1.0
    assert "config.json of owner/other is not in the local cache" in other
    assert "local_files_only" in other
    assert "keyglue-small" in other
    assert "not in the local cache" in revision
    assert not any("other" in request or "v9" in request for request in hub.requests)
    hub.requests.clear()
    mark, message = run_with_hub('result = [mark(), error("owner/other")]', HF_HUB_OFFLINE="1")
    assert mark == 1.0
    assert "HF_HUB_OFFLINE" in message
    assert not hub.requests


def test_when_the_hub_cannot_be_reached(hub: Any, run_with_hub: Run, make_folder: Callable[..., Path]) -> None:
    hub.add("owner/tiny", make_folder(1.0))
    assert run_with_hub("result = mark()") == 1.0
    # What is cached loads, and the rest fails at once, not after half a minute of retries.
    code = """
start = time.monotonic()
result = [mark(), error("owner/other"), error(force_download=True), time.monotonic() - start]
"""
    mark, message, force, seconds = run_with_hub(code, HF_ENDPOINT="http://127.0.0.1:9")
    assert mark == 1.0
    assert "cannot be reached (ConnectError" in message
    assert "Connect once to fill the cache" in message
    assert "is to be fetched anew" in force
    assert seconds < 8
    hub.down = True
    mark, message, force, seconds = run_with_hub(code)
    assert mark == 1.0
    assert "answered with HTTP status 503" in message
    assert seconds < 8


def test_what_the_hub_does_not_give(hub: Any, run_with_hub: Run, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(1.0)
    hub.add("owner/tiny", folder)
    hub.add("owner/private", folder, private=True)
    hub.add("owner/gated", folder, gated=True)
    (folder / "model.safetensors").unlink()
    hub.add("owner/empty", folder)
    (folder / "config.json").write_text("[]")
    hub.add("owner/odd", folder)
    result = run_with_hub(
        """
from keyglue.base.errors import KeyglueError
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching as Model
names = ["owner/nothing", "owner/private", "owner/gated"]
result = [error(name) for name in names] + [error(revision="v9"), error(token="hf_expired")]
result.append([Model.from_pretrained(name, token="hf_reader").name_or_path for name in names[1:]])
for name in ("owner/empty", "owner/odd"):
    try:
        Model.from_pretrained(name)
    except KeyglueError as caught:
        result.append(type(caught).__name__ + " " + str(caught))
"""
    )
    missing, private, gated, revision, expired, loaded, empty, odd = result
    assert "there is no model owner/nothing on the Hub, or it is private" in missing
    assert "owner/private" in private
    assert "token=" in private
    assert "owner/gated is gated" in gated
    assert "no revision 'v9'" in revision
    assert "refuses the access token" in expired
    assert loaded == ["owner/private", "owner/gated"]
    assert empty.startswith("CheckpointError owner/empty on the Hub has no model.safetensors")
    assert odd.startswith("ConfigError")
    assert "JSON object" in odd


def test_every_class_loads_from_the_hub(hub: Any, run_with_hub: Run, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(1.0, card="---\nlicense: cc-by-nc-4.0\n---\n")
    (folder / "preprocessor_config.json").write_text('{"size": {"longest_edge": 77}}')
    hub.add("owner/tiny", folder)
    hub.add("ETH-CVG/lightglue_superpoint", folder)
    result = run_with_hub(
        """
import keyglue
result = []
for name in ("owner/tiny", "owner/tiny", "ETH-CVG/lightglue_superpoint"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = keyglue.AutoModel.from_pretrained(name)
    result.append([type(model).__name__, model.licence, [w.category.__name__ for w in caught]])
config = keyglue.AutoConfig.from_pretrained("owner/tiny", filter_threshold=0.5)
detector = keyglue.SuperPointForKeypointDetection.from_pretrained("owner/tiny", local_files_only=True)
processor = keyglue.AutoImageProcessor.from_pretrained("owner/tiny")
result += [config.filter_threshold, detector.num_parameters(), processor.size]
"""
    )
    name = "LightGlueForKeypointMatching"
    assert result[0] == [name, "cc-by-nc-4.0", ["LicenceWarning"]]
    assert result[1] == [name, "cc-by-nc-4.0", []]  # once a model
    assert result[2] == [name, "non-commercial (SuperPoint weights)", ["LicenceWarning"]]
    assert result[3] == 0.5
    assert result[4] > 1000
    assert result[5] == {"longest_edge": 77}


def test_pushing_a_model(hub: Any, run_with_hub: Run) -> None:
    result = run_with_hub(
        """
import torch
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching as Model
model = Model.from_pretrained()
card = "---\\nlicense: mit\\n---\\nA card."
url = model.push_to_hub("owner/mine", token="hf_writer", private=True, card=card, dtype="float16", commit_message="One")
again = model.push_to_hub("owner/mine", token="hf_writer", dtype="float32")
back = Model.from_pretrained("owner/mine", token="hf_writer", dtype="auto")
same = all(torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items())
result = [url, again, same, str(back.dtype), back.licence]
"""
    )
    repository = hub.repositories["owner/mine"]
    first, second = repository.commits
    assert result == [
        f"{hub.url}/owner/mine/commit/{first}",
        f"{hub.url}/owner/mine/commit/{second}",
        True,
        "torch.float32",
        "mit",
    ]
    assert repository.private
    assert sorted(repository.commits[first]) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(repository.commits[first]["config.json"])["dtype"] == "float16"


def test_pushing_where_one_may_not(hub: Any, run_with_hub: Run) -> None:
    code = """
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching as Model
model = Model.from_pretrained()
result = []
for token in (None, "hf_reader", "hf_expired"):
    try:
        model.push_to_hub("owner/mine", token=token)
    except HubError as caught:
        result.append(str(caught))
"""
    messages = run_with_hub(code)
    assert len(messages) == 3
    assert all("does not let you write to owner/mine" in message for message in messages)
    assert not hub.repositories
    messages = run_with_hub(code, HF_ENDPOINT="http://127.0.0.1:9")
    assert all("owner/mine could not be sent: the Hub cannot be reached" in message for message in messages)
