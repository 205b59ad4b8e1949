"""Root and shards in an S3 store: the queue, its lease and the streamed files work there too."""

import json
import sys
from pathlib import Path

import fsspec
import pytest
from conftest import random_images, write_shards
from running import SECRET, Service, free_port

sys.path.append(str(Path(__file__).parents[1] / "servers"))
from stores import SECRET as STORE_SECRET
from stores import Store, s3_store  # noqa: F401  (the fixture `s3`)

from tilecov.pipeline import Job, WienerFilter, run
from tilecov.storage.objects import Folder


class Stored(Service):
    """A service whose root is a URL; its log lies elsewhere."""

    place: Path

    @property
    def log(self) -> Path:
        return self.place / "service.log"


def publish(s3: Store, paths: list[Path]) -> None:
    """Put files where anybody may read them, as moto serves them to browsers."""
    fs = fsspec.filesystem("s3", **s3.options)
    for path in paths:
        body = path.read_bytes()
        fs.call_s3("put_object", Bucket="bucket", Key=f"web/{path.name}", Body=body, ACL="public-read")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_service_whose_root_is_in_a_store(s3: Store, tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "shards", random_images(60, 8), 3)
    local = run(Job(shards=tuple(map(str, paths)), resolution=8, out=str(tmp_path / "own")))
    s3.put(tmp_path / "shards", "data/shards")
    (tmp_path / "options.json").write_text(json.dumps(s3.options))
    root = f"{s3.root}/team/root"
    publish(s3, paths)
    web = f"http://127.0.0.1:{s3.port}/bucket/web"
    service = Stored(
        root, [f"{s3.root}/data", web], ["--storage-options", f"@{tmp_path / 'options.json'}"], SECRET, free_port()
    )  # type: ignore[arg-type]
    service.place = tmp_path
    try:
        client = service.start().client
        first = client.submit({"shards": [f"{s3.root}/data/shards/*.tar"], "resolution": 8})["id"]
        service.kill()  # while it is begun
        client = service.start().client
        found = client.wait(first)
        assert found["state"] == "complete", found["error"]
        assert found["result"]["moments_digest"] == local["moments_digest"]
        client.fetch(first, tmp_path / "got")
        assert WienerFilter.load(tmp_path / "got").U.shape == (192, 192)
        with pytest.raises(RuntimeError, match="not below an allowed prefix"):
            client.plan({"shards": [f"{root}/x.tar"], "resolution": 8})
        folder = Folder(root, s3.options)
        texts = [folder.read(f"queue/{first}.json"), folder.read(f"runs/{first}/run.json"), service.log.read_bytes()]
        texts += [json.dumps(client.run(first)).encode(), (tmp_path / "got" / "report.html").read_bytes()]
        for text in texts:
            assert STORE_SECRET.encode() not in text
        client.remove(first)
        mixed = [f"{web}/{paths[0].name}", *(f"{s3.root}/data/shards/{path.name}" for path in paths[1:])]
        found = client.wait(client.submit({"shards": mixed, "resolution": 8, "rank": 0})["id"])
        assert found["state"] == "complete", found["error"]
        assert found["result"]["moments_digest"] == local["moments_digest"]
        client.remove(found["id"])
        assert folder.names("queue") == []
        assert folder.names("runs") == []
    finally:
        service.stop()
    assert "lease.json" not in folder.names()  # a service that ended in order leaves its root to the next one
