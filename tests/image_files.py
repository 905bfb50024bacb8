"""Image files as bytes, and folders, zips and tars of such files."""

import io
import tarfile
import zipfile

from PIL import Image


def png(colour=(10, 20, 30), size=(8, 8), mode="RGB", kind="PNG", **options):
    """One image of one colour, as a file of a kind that Pillow writes."""
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, format=kind, **options)
    return stream.getvalue()


def encoded(array, mode=None):
    """The PNG of an array of pixels."""
    stream = io.BytesIO()
    Image.fromarray(array, mode).save(stream, format="PNG") if mode else Image.fromarray(array).save(
        stream, format="PNG"
    )
    return stream.getvalue()


def as_folder(path, files):
    """Files, name -> content, below a folder."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path, files):
    """The same as a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def as_tar(path, files):
    """The same as a tar, compressed where the name ends with gz."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
