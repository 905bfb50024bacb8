"""Weights files: where they are looked for, and downloads that must not leave half a file or another one."""

import hashlib
import io
from dataclasses import replace

import pytest
import timm
import torch

from driftkit.encoders import weights
from driftkit.encoders.specs import SPECS
from driftkit.encoders.weights import HubFile, UrlFile, fetch, published
from driftkit.errors import ArtifactError
from tests.web import serve


def torch_file(document=None) -> bytes:
    memory = io.BytesIO()
    torch.save(document or {"weight": torch.arange(1000.0)}, memory)
    return memory.getvalue()


@pytest.fixture
def hub_folder(monkeypatch, tmp_path):
    """Empty caches."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if not (spec.weights_url or spec.packaged)])
def test_the_repository_is_the_one_that_the_built_network_names(name):
    with torch.device("meta"):
        network = timm.create_model(SPECS[name].model, pretrained=False)
    assert published(SPECS[name]).repository == network.pretrained_cfg["hf_hub_id"]


def test_a_model_without_tag_gets_the_repository_of_its_default():
    assert published(replace(SPECS["dinov2-multires"], model="resnet50")).repository == "timm/resnet50.a1_in1k"


def test_digests_come_from_the_authors_or_from_the_name():
    assert published(SPECS["mocov2"]).digest == "md5:a04e12f8"
    named = replace(SPECS["mocov2"], weights_url="https://x.org/net-6726825d.pth")
    assert published(named).digest == "sha256:6726825d"
    assert published(replace(SPECS["mocov2"], weights_url="https://x.org/net-best.pth")).digest == ""


def test_nothing_is_asked_of_the_network_to_find_weights(hub_folder, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert all(published(spec).locate() is None for spec in SPECS.values() if not spec.packaged)
    target = hub_folder / "moco_v2_800ep_pretrain.pth.tar"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"")
    assert published(SPECS["mocov2"]).locate() == target


def test_a_download_arrives_whole_and_under_its_name_alone(hub_folder):
    content = torch_file()
    with serve() as site:
        site.files["/net.pth"] = content
        path = fetch(replace(SPECS["mocov2"], weights_url=f"{site.url}/net.pth"))
        *headers, last = site.asked
        assert (set(headers), last) == ({"HEAD /net.pth"}, "GET /net.pth")
    assert path == hub_folder / "net.pth"
    assert path.read_bytes() == content
    assert [p.name for p in hub_folder.iterdir()] == ["net.pth"]


@pytest.mark.parametrize(
    ("content", "digest", "cut", "says"),
    [
        (torch_file(), "", True, "weights only"),
        (torch_file(), "sha256:00000000", False, "sha256 is"),
        (torch_file(), "md5:00000000", False, "md5 is"),
        (b"<html>sign in first</html>", "", False, "weights only"),
        (None, "", False, "404"),
    ],
    ids=["cut off", "sha256", "md5", "page", "absent"],
)
def test_a_download_that_is_not_the_file_leaves_nothing(hub_folder, content, digest, cut, says):
    with serve() as site:
        site.cut = cut
        if content is not None:
            site.files["/net.pth"] = content
        with pytest.raises(ArtifactError, match=says) as caught:
            UrlFile(f"{site.url}/net.pth", digest).download()
    assert "partial" not in str(caught.value)
    assert "net.pth" in str(caught.value)
    assert not hub_folder.exists() or not list(hub_folder.iterdir())


def test_an_interrupted_download_leaves_nothing_and_keeps_what_was_there(hub_folder, monkeypatch):
    hub_folder.mkdir(parents=True)
    (hub_folder / "net.pth").write_bytes(b"before")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.hub.download_url_to_file", interrupt)
    with serve() as site:
        site.files["/net.pth"] = torch_file()
        with pytest.raises(KeyboardInterrupt):
            UrlFile(f"{site.url}/net.pth").download(force=True)
    assert [p.name for p in hub_folder.iterdir()] == ["net.pth"]
    assert (hub_folder / "net.pth").read_bytes() == b"before"


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """The hub's client put down to a copy into a cache laid out as its own."""
    content = torch_file()
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    link = tmp_path / "snapshots" / "1" / "model.bin"

    def download(_repository, _file, *, force_download):
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(weights, "require_file", lambda _: None)
    return blob, link


def test_a_file_of_the_hub_is_compared_with_the_hubs_digest(fake_hub):
    _, link = fake_hub
    file = HubFile("timm/net", "model.bin")
    assert file.download() == link
    assert file.check(link) == "sha256 of the hub"


def test_a_broken_file_of_the_hub_does_not_stay_in_its_cache(fake_hub, monkeypatch):
    blob, link = fake_hub
    monkeypatch.setattr(weights, "sha256_file", lambda _: "0" * 64)
    with pytest.raises(ArtifactError, match="sha256 is 0000"):
        HubFile("timm/net", "model.bin").download()
    assert not blob.exists()
    assert not link.is_symlink()


def test_what_the_hub_client_raises_is_one_line_about_the_file(fake_hub, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("transfer library: connection reset")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ArtifactError, match=r"model\.bin of timm/net did not come: .*reset"):
        HubFile("timm/net", "model.bin").download()


def test_the_hubs_offline_switch_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactError, match="HF_HUB_OFFLINE"):
        HubFile("timm/net").download()
