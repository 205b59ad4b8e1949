#!/usr/bin/env python3
"""Whether this container is well: the HTTP server of its process answers, or, without one, tilecov can work here.

HEALTH_URL is the address that a scheduler, worker or service answers at; a job has none.
"""

import os
import tempfile
import urllib.request
from importlib import metadata

if url := os.environ.get("HEALTH_URL"):
    urllib.request.urlopen(url, timeout=8).close()  # noqa: S310  (this container's own address)
else:
    metadata.version("tilecov")
    tempfile.TemporaryFile().close()
