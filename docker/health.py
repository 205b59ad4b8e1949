#!/usr/bin/env python3
"""Whether the HTTP server of this container answers: HEALTH_URL is where a scheduler, worker or service does.

A job has none, and nothing is asked: a process that hangs still renews its lease and beats its heart, so that nothing
seen from beside it would tell. Its exit status and its log say how it is.
"""

import os
import sys
import urllib.request

if url := os.environ.get("HEALTH_URL"):
    try:
        urllib.request.urlopen(url, timeout=8).close()  # noqa: S310  (this container's own address)
    except OSError as error:
        sys.exit(f"{url}: {error}")
else:
    sys.stdout.write("HEALTH_URL is not set: nothing was asked\n")
