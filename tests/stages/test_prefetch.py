"""Fetching by name: what came, what was here, what did not come, and that one does not stop the others."""

import hashlib
from dataclasses import replace

import pytest
import torch

from driftkit.datasets import cifar10
from driftkit.encoders import specs
from driftkit.encoders.autoencoder import AutoencoderFile
from driftkit.encoders.specs import PACKAGED
from driftkit.errors import ArtifactError, UsageError
from driftkit.scoring import extractors
from driftkit.stages import prefetch as prefetching
from driftkit.stages.prefetch import EVALUATORS, items, prefetch, select
from tests.encoders.test_weights import torch_file
from tests.encoders.tiny_autoencoder import tiny_autoencoder
from tests.web import serve


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A host that publishes everything, empty caches here."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.delenv("DRIFTKIT_INCEPTION_WEIGHTS", raising=False)
    archive, inception = b"archive", torch_file()
    with serve() as site:
        site.files |= {"/moco.pth.tar": torch_file(), "/inception.pth": inception, "/cifar.tar.gz": archive}
        row = replace(specs.SPECS["mocov2"], weights_url=f"{site.url}/moco.pth.tar")
        monkeypatch.setitem(specs.SPECS, "mocov2", row)
        monkeypatch.setattr(extractors, "INCEPTION_URL", f"{site.url}/inception.pth")
        monkeypatch.setattr(extractors, "INCEPTION_DIGEST_PREFIX", hashlib.sha256(inception).hexdigest()[:8])
        monkeypatch.setenv("DRIFTKIT_CIFAR10_URL", f"{site.url}/cifar.tar.gz")
        monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
        yield site


NAMES = ["mocov2", "inception", "cifar10"]


def test_what_is_fetched_is_present_the_next_time(site):
    reported = []
    first = prefetch(select(NAMES), report=reported.append)
    assert [one.state for one in first] == ["fetched"] * 3
    assert [one.checked for one in first] == ["readable", "published sha256", "published md5"]
    assert len(reported) == 3
    for one in first:
        document = one.model_dump()
        content = site.files["/" + document["url"].rsplit("/", 1)[1]]
        assert document["sha256"] == hashlib.sha256(content).hexdigest()
        assert document["bytes"] == len(content)
    asked = len(site.asked)
    again = prefetch(select(NAMES), report=reported.append)
    assert [(one.state, one.sha256) for one in again] == [("present", one.sha256) for one in first]
    assert (len(site.asked), len(reported)) == (asked, 3)


def test_one_that_fails_does_not_keep_the_others_from_coming(site):
    del site.files["/moco.pth.tar"]
    site.files["/inception.pth"] = torch_file({"other": torch.zeros(1)})
    broken, other, whole = prefetch(select(NAMES))
    assert (broken.state, other.state, whole.state) == ("failed", "failed", "fetched")
    assert "404" in broken.reason
    assert "checkpoints/moco.pth.tar" in broken.reason
    assert "--encoder-weights" in broken.reason
    assert "sha256 is" in other.reason
    assert "--extractor-weights" in other.reason


def test_the_wrong_archive_says_how_to_bring_the_right_one_once(site):
    site.files["/cifar.tar.gz"] = b"another"
    (one,) = prefetch(select(["cifar10"]))
    assert one.reason.count("place cifar-10-python.tar.gz") == 1
    assert cifar10.OFFICIAL_URL in one.reason


def test_a_host_that_does_not_answer_is_asked_once_for_all(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    asked = []

    def refuse(request, **_):
        asked.append(request.full_url)
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    done = [one for one in prefetch(select([], everything=True)) if one.name not in PACKAGED]
    assert all(one.state == "failed" for one in done)
    assert len(asked) == len(set(asked)) < len(done)
    for one in done:
        assert "no network" in one.reason
        assert "elsewhere" in one.reason
        assert "\n" not in one.reason


def test_a_broken_file_is_named_and_force_fixes_it(site):
    (before,) = prefetch(select(["mocov2"]))
    before.path.write_bytes(b"half")
    (broken,) = prefetch(select(["mocov2"]))
    assert broken.state == "failed"
    assert "driftkit prefetch mocov2 --force" in broken.reason
    (fixed,) = prefetch(select(["mocov2"]), force=True)
    assert (fixed.state, fixed.sha256) == ("fetched", before.sha256)


def test_a_variable_that_names_no_file_is_not_fixed_by_a_download(site, monkeypatch, tmp_path):
    monkeypatch.setenv("DRIFTKIT_INCEPTION_WEIGHTS", str(tmp_path / "absent.pth"))
    (one,) = prefetch(select(["inception"]))
    assert one.state == "failed"
    assert "DRIFTKIT_INCEPTION_WEIGHTS" in one.reason
    assert not site.asked


def test_every_row_and_every_evaluator_has_a_name_of_its_own():
    known = items()
    assert len(known) == len(specs.SPECS) + len(EVALUATORS) + 1
    assert [name for name, item in known.items() if item.kind == "encoder"] == list(specs.SPECS)
    assert known["evaluator:dinov2"].published.repository == f"timm/{extractors.DINOV2_MODEL}"


def test_names_in_their_order_and_once():
    picked = select(["cifar10", "evaluator:inception", "inception", "mocov2"])
    assert [item.name for item in picked] == ["cifar10", "inception", "mocov2"]


def test_the_bare_name_is_the_encoder_and_says_what_it_is_not(monkeypatch, site):
    (item,) = select(["dinov2"])
    assert item.kind == "encoder"
    reported = []
    monkeypatch.setattr(prefetching, "unreachable_hosts", lambda _: {"https://huggingface.co": "no network"})
    prefetch([item], report=reported.append)
    assert "evaluator:dinov2" in reported[0]
    reported.clear()
    prefetch(select(["dinov2", "evaluator:dinov2"]), report=reported.append)
    assert not reported


def test_any_timm_model_can_be_fetched_for_the_encoders_that_need_no_row():
    (item,) = select(["timm:resnet18.a1_in1k"])
    assert item.published.repository == "timm/resnet18.a1_in1k"
    with pytest.raises(UsageError, match="timm has no model"):
        select(["timm:resnet19"])


def test_a_file_that_several_encoders_read_is_fetched_once(site, monkeypatch):
    monkeypatch.setitem(specs.SPECS, "again", replace(specs.SPECS["mocov2"], name="again"))
    done = prefetch(select(["mocov2", "again"]), force=True)
    assert [one.state for one in done] == ["fetched", "present"]
    assert site.asked.count("GET /moco.pth.tar") == 1


@pytest.mark.parametrize("name", ["evaluator:cifar10", "evaluator:mocov2", "fid:inception", "shapes"])
def test_names_that_are_no_files_are_refused(name):
    with pytest.raises(UsageError, match=name):
        select([name])


def test_an_address_that_is_none_is_a_usage_error(site, monkeypatch):
    monkeypatch.setenv("DRIFTKIT_CIFAR10_URL", "nonsense")
    with pytest.raises(UsageError, match="nonsense"):
        prefetch(select(["cifar10"]))


def test_locating_inception_by_a_variable_that_names_no_file_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("DRIFTKIT_INCEPTION_WEIGHTS", str(tmp_path / "absent.pth"))
    with pytest.raises(ArtifactError, match="DRIFTKIT_INCEPTION_WEIGHTS"):
        extractors.locate_weights("inception")


def test_an_autoencoder_is_a_config_and_weights(monkeypatch, tmp_path):
    first, second = select(["autoencoder:owner/name/vae"])
    assert (first.published.file, second.published.file) == (
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    )
    done = prefetch([first, second])
    assert [one.state for one in done] == ["failed", "failed"]
    assert "place it in a folder and name that by --autoencoder" in done[1].reason
    folder = tiny_autoencoder(tmp_path / "vae")
    monkeypatch.setattr(AutoencoderFile, "locate", lambda self: folder.parent / self.file)
    done = prefetch(select(["autoencoder:owner/name/vae"]))
    assert [(one.state, one.checked) for one in done] == [("present", "readable"), ("present", "readable")]
    with pytest.raises(UsageError, match="hub id OWNER/NAME"):
        select(["autoencoder:nothing"])
