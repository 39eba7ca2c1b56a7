"""(pure) The apt commands that install the CUDA toolkit from NVIDIA's repository, per distribution release.

They follow NVIDIA's installation guide for Linux: the package cuda-keyring adds the key and the repository; a
mirror is added by hand. CUDA 12.8 is the first release for all GPUs up to Blackwell, and runs with every
driver since 525.
"""

from __future__ import annotations

from collections.abc import Mapping

_PACKAGE = "cuda-toolkit-12-8"
_HOST = "https://developer.download.nvidia.com/compute/cuda/repos"
_KEYRING = "cuda-keyring_1.1-1_all.deb"
_KEY = "3bf863cc.pub"
_KEPT_KEY = "/usr/share/keyrings/cuda-archive-keyring.gpg"
# The releases that CUDA 12.8 supports.
_RELEASES = {
    ("ubuntu", "20.04"): "ubuntu2004",
    ("ubuntu", "22.04"): "ubuntu2204",
    ("ubuntu", "24.04"): "ubuntu2404",
    ("debian", "12"): "debian12",
}
_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa", "arm64": "sbsa"}


def commands(release: Mapping[str, str], machine: str, mirror: str | None = None) -> list[str]:
    """Return the shell commands for a release (the fields of /etc/os-release) and a CPU architecture such as
    x86_64. The list is empty if NVIDIA has no CUDA 12.8 for it. `mirror` is the URL of a copy of NVIDIA's
    `repos` folder."""
    name = _RELEASES.get((release.get("ID", ""), release.get("VERSION_ID", "")))
    architecture = _ARCHITECTURES.get(machine)
    if name is None or architecture is None:
        return []
    place = f"{(mirror or _HOST).rstrip('/')}/{name}/{architecture}"
    found = [f"wget {place}/{_KEYRING}", f"sudo dpkg -i {_KEYRING}"]
    if mirror is not None:
        found = [
            f"wget -qO- {place}/{_KEY} | sudo gpg --dearmor -o {_KEPT_KEY}",
            f'echo "deb [signed-by={_KEPT_KEY}] {place}/ /" | sudo tee /etc/apt/sources.list.d/cuda.list',
        ]
    return [*found, "sudo apt-get update", f"sudo apt-get install -y {_PACKAGE}"]
