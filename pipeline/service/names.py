"""Names of the files that a service gives; the client knows them too, and takes no other."""

from tilecov.storage.runs import ARTIFACTS, LEDGER, MANIFEST, REPORT

FILES = {
    "U.pt": f"{ARTIFACTS}/U.pt",
    "LA.pt": f"{ARTIFACTS}/LA.pt",
    "Vh.pt": f"{ARTIFACTS}/Vh.pt",
    "mean.pt": f"{ARTIFACTS}/mean.pt",
    MANIFEST: MANIFEST,
    LEDGER: LEDGER,
    REPORT: REPORT,
}
"""What can be fetched, and where it lies in a run folder: nothing else."""
