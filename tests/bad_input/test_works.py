"""What is unusual and right works: pictures of every mode, names in any script, numbers of any size."""

import pytest
import torch

from tests.bad_input.case import Works
from tests.bad_input.cases_train import TINY
from tests.bad_input.conftest import snapshot, words_of
from tests.bad_input.given import all_of, folder_named, image, images, tensors
from tests.conftest import driftkit

MODES = ("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16")
SUFFIX = {"CMYK": "jpg", "YCbCr": "jpg", "I;16": "png", "LA": "png"}
MIXED = all_of(*(image(f"photos/{i}.{SUFFIX.get(mode, 'png')}", mode, seed=i) for i, mode in enumerate(MODES)))

WORKS = [
    *(
        Works(
            f"images-{mode.replace(';', '-')}",
            "data photos -o p",
            ["16 of 8x8 px"],
            images(mode=mode),
            ["p.safetensors"],
        )
        for mode in ("1", "L", "P", "LA", "RGBA", "I;16")
    ),
    Works("images-of-mixed-modes", "data photos", [f"{len(MODES)} of 8x8 px"], MIXED),
    Works("images-animated", "data photos", ["1 of 8x8 px"], image("photos/a.gif", frames=3)),
    Works(
        "images-of-mixed-sizes-resized",
        "data photos --image-size 8",
        ["2 of 8x8 px"],
        all_of(image("photos/a.png"), image("photos/b.png", size=(9, 31))),
    ),
    Works("images-suffix-in-capitals", "data photos", ["1 of 8x8 px"], image("photos/A.PNG")),
    Works(
        "folder-with-spaces",
        "data 'my photos' -o 'a b/my pack'",
        ["16 of 8x8 px"],
        images("my photos"),
        ["a b/my pack.safetensors"],
    ),
    Works("folder-of-umlauts", "data größe", ["16 of 8x8 px"], images("größe")),
    Works(
        "folder-of-emoji", "data '📷 照片' -o '🎲.safetensors'", ["16 of 8x8 px"], images("📷 照片"), ["🎲.safetensors"]
    ),
    Works("folder-with-newline", "data 'a\nb'", ["16 of 8x8 px"], images("a\nb")),
    Works("folder-with-question-mark", "data 'what?a=b'", ["16 of 8x8 px"], images("what?a=b")),
    Works("folder-with-markup", "data '[red]x[/red]'", ["[red]x[/red]"], images("[red]x[/red]")),
    Works("folder-like-an-option", "data -- -n", ["16 of 8x8 px"], images("-n")),
    Works(
        "output-of-long-name",
        f"data 'shapes?count=8&image_size=8' -o {'y' * 200}",
        [],
        makes=["y" * 200 + ".safetensors"],
    ),
    Works("output-in-an-empty-folder", f"{TINY} --steps 1", [], folder_named("run"), ["run/manifest.json"]),
    Works(
        "train-huge-seed", f"{TINY} --steps 1 --seed {10**30} -o 'ein Lauf 🎲'", [], makes=["ein Lauf 🎲/manifest.json"]
    ),
    Works(
        "sample-negative-seed",
        "sample {drift} -n 2 --seed=-5 --device cpu -o 'x y/ß.safetensors'",
        [],
        makes=["x y/ß.safetensors", "x y/ß.png"],
    ),
    Works(
        "sample-over-what-a-killed-process-left",
        "sample {drift} -n 2 --device cpu -o s.safetensors",
        [],
        tensors("s.safetensors", images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        ["s.json"],
        "s.safetensors",
    ),
    Works(
        "fid-of-a-folder-with-spaces",
        "fid 'my photos' -r {pack} --extractor encoder:{mae} --device cpu -o 'a b.json'",
        [],
        images("my photos"),
        ["a b.json"],
    ),
]


@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.id)
def test_works(case, world, tmp_path):
    case.given(tmp_path)
    before = snapshot(world["root"], tmp_path)
    done = driftkit(*words_of(case.line, world))
    assert done.exit_code == 0, done.stderr
    assert "error:" not in done.stderr
    printed = " ".join(done.stdout.split())
    assert [words for words in case.says if words not in printed] == []
    assert [name for name in case.makes if not (tmp_path / name).is_file()] == []
    made = [str(tmp_path / name) for name in (*case.makes, case.replaces)]
    after = snapshot(world["root"], tmp_path)
    kept = {path: digest for path, digest in before.items() if path not in made}
    assert {path: after.get(path) for path in kept} == kept
