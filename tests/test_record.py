"""A record without what makes its numbers believable does not load."""

import copy
import json

import pytest

from hranet_arch import record
from hranet_arch.errors import InputError
from tests.conftest import REPOSITORY

RECORD = {
    "format": "hranet-arch comparison 1",
    "name": "tiny",
    "started": "2026-11-22T10:00:00Z",
    "commit": "0123456789abcdef",
    "machine": {
        "system": "Linux x86_64",
        "versions": {"hranet-arch": "0.1.0", "python": "3.11", "torch": "2.13", "numpy": "2.4"},
        "device": "cpu", "device_name": "a CPU", "threads": 2, "cpu_capability": "AVX2",
        "precision": {"dtype": "float32", "deterministic": False},
    },
    "protocol": {
        "task": "denoise", "color": "gray", "levels": [25],
        "noise": {"name": "gaussian", "generator": "RandomState", "seed": "0 for each picture", "description": "white"},
        "metrics": {"psnr": "8-bit", "psnr_float": "float", "ssim": "8-bit"},
        "channel": "gray", "crop_border": "0", "precision": "fp32", "tile": 0,
    },
    "testsets": {"Set": {"pictures": 2, "sha256": {"all": "0" * 64}, "status": "exact"}},
    "methods": {
        "Net": {
            "kind": "network", "type": "HRANet", "arguments": {"num_feat": 4},
            "weights": {"all": {"file": "a.pth", "sha256": "1" * 64}}, "training": "BSD400", "published": None,
            "costs": [{
                "level": None, "parameters": 10, "macs": 100, "macs_size": [1, 8, 8],
                "latency": [{"size": [1, 8, 8], "median": 0.2, "lower_quartile": 0.1, "upper_quartile": 0.3,
                             "blocks": 1, "runs": 1, "rounds": 1, "threads": 2, "device": "cpu"}],
                "memory": [{"size": [1, 8, 8], "peak": 5, "weights": 1, "growth": 2, "device": "cpu",
                            "method": "rise"}],
            }],
        },
    },
    "results": [{
        "method": "Net", "testset": "Set", "level": 25, "psnr": 30.0, "psnr_float": 31.0, "ssim": 0.8,
        "pictures": [
            {"name": "a", "size": [8, 8], "psnr": 29.0, "psnr_float": 31.0, "ssim": 0.8},
            {"name": "b", "size": [8, 8], "psnr": 31.0, "psnr_float": None, "ssim": None},
        ],
    }],
    "failures": [{"method": "Other", "testset": None, "level": None, "picture": None, "reason": "no weights"}],
}  # fmt: skip


def find_paths(value, path=()):
    """The keys to every value inside, those of lists included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from find_paths(item, (*path, key))


# What a record may do without: entries of mappings whose keys are free, and of lists.
FREE = ("sha256", "arguments", "weights", "precision", "methods", "testsets")
REQUIRED = [
    path
    for path in find_paths(RECORD)
    if isinstance(path[-1], str) and not (len(path) > 1 and path[-2] in FREE and path != ("protocol", "precision"))
]


def check(content, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    return record.read_record(path)


def change(path, value=None, *, remove=False):
    content = copy.deepcopy(RECORD)
    place = content
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def test_a_whole_record_is_read_and_written_as_it_was(tmp_path):
    result = check(RECORD, tmp_path)
    record.write_record(result, tmp_path / "again.json")
    assert record.read_record(tmp_path / "again.json") == result
    assert json.loads((tmp_path / "again.json").read_text()) == RECORD
    assert result.find("Net", "Set", 25).psnr == 30 and result.find("Net", "Set", 15) is None
    assert result.failures[0].describe() == "Other: no weights"


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_a_record_that_lacks_something_is_refused(path, tmp_path):
    with pytest.raises(InputError, match="record.json: "):
        check(change(path, remove=True), tmp_path)


def test_the_things_that_the_field_forgets_are_required():
    named = {".".join(map(str, path)) for path in REQUIRED}
    assert {
        "commit", "machine.device", "machine.device_name", "machine.threads", "machine.versions.torch",
        "protocol.noise.generator", "protocol.noise.seed", "protocol.precision", "methods.Net.weights.all.sha256",
        "testsets.Set.sha256", "methods.Net.costs.0.macs_size", "methods.Net.costs.0.latency.0.lower_quartile",
        "methods.Net.costs.0.memory.0.size", "results.0.pictures.0.psnr_float",
    } <= named  # fmt: skip


WRONG = {
    ("commit",): "",
    ("started",): "yesterday",
    ("machine", "threads"): 0,
    ("testsets", "Set", "sha256", "all"): "abc",
    ("methods", "Net", "weights", "all", "sha256"): "F" * 64,
    ("protocol", "noise"): None,
    ("protocol", "noise", "name"): "uniform",
    ("results", 0, "psnr"): 30.01,  # not the mean of its pictures
    ("results", 0, "method"): "Nobody",
    ("results", 0, "testset"): "Nowhere",
    ("results", 0, "pictures"): [],
    ("testsets", "Set", "pictures"): 1,  # fewer than the result's
    ("methods", "Net", "costs", 0, "latency", 0, "median"): 0,
    ("something",): "else",
}


@pytest.mark.parametrize("path", WRONG, ids=lambda path: ".".join(map(str, path)))
def test_wrong_values_are_refused(path, tmp_path):
    with pytest.raises(InputError, match="record.json: "):
        check(change(path, WRONG[path]), tmp_path)


def test_psnr_b_and_the_encoder_belong_to_jpeg(tmp_path):
    content = copy.deepcopy(RECORD)
    content["protocol"] |= {"task": "jpeg", "noise": None, "compression": "libjpeg"}
    content["protocol"]["metrics"]["psnrb"] = "less what blocks are left"
    parts = [content["results"][0], *content["results"][0]["pictures"]]
    for part in parts:
        part["psnrb"] = 28.0
    result = check(content, tmp_path)
    record.write_record(result, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == content
    del content["protocol"]["compression"]
    with pytest.raises(InputError, match=r"protocol.compression is missing"):
        check(content, tmp_path)
    content["protocol"]["compression"] = "libjpeg"
    del parts[1]["psnrb"]
    with pytest.raises(InputError, match="psnrb"):
        check(content, tmp_path)


def test_a_missing_or_broken_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        record.read_record(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"format": ')
    with pytest.raises(InputError, match="cut.json: record: Invalid JSON"):
        record.read_record(tmp_path / "cut.json")


def test_the_json_schema_is_that_of_the_code():
    """``record.write_schema("docs/records/compare.schema.json")`` makes it anew."""
    path = REPOSITORY / "docs/records/compare.schema.json"
    assert json.loads(path.read_text()) == record.Record.model_json_schema()
