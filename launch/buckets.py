"""gs://BUCKET/... on a command line: programs work with files, so Cloud Storage FUSE mounts the bucket at /gcs/BUCKET.

Only config.checkpoint_dir is not changed: checkpoints are written to buckets directly, which is faster.

File metadata are not cached, as all hosts must see at once what one of them wrote. Folders with many files can be
renamed, as checkpoints need that.
"""

import re
from typing import Any

ROOT = "/gcs"

_INSTALL = (
    'echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt '
    'gcsfuse-$(lsb_release -c -s) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null && '
    "curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | "
    "sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null && "
    "sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse"
)
_VALUE = re.compile(r"^(?!--?[\w.]*checkpoint_dir=)((?:--?[\w.]+=)?)gs://([^/]+)")  # a word, or the value of a flag


def localized(passed: list[str]) -> tuple[list[str], list[str]]:
    """Returns the command line with mounted folders instead of buckets, and the names of the buckets."""
    found = [match[2] for word in passed if (match := _VALUE.match(word))]
    return [_VALUE.sub(rf"\1{ROOT}/\2", word) for word in passed], list(dict.fromkeys(found))


def mount(bucket: str) -> str:
    """Returns the shell command that mounts a bucket on Ubuntu."""
    at = f"{ROOT}/{bucket}"
    options = "--implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=200000"
    return (
        f"{{ command -v gcsfuse > /dev/null || {{ {_INSTALL}; }}; }} && {{ mountpoint -q {at} || "
        f'{{ sudo mkdir -p {at} && sudo chown "$(id -u)" {at} && gcsfuse {options} {bucket} {at}; }}; }}'
    )


def volume(bucket: str, name: str) -> dict[str, Any]:
    """Returns the volume of a pod on GKE that holds a bucket."""
    options = (
        "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,file-system:rename-dir-limit:200000"
    )
    attributes = {"bucketName": bucket, "mountOptions": options}
    return {"name": name, "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
