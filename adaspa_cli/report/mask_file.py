"""What a report says of a mask file: which one, and how well its masks fitted where that was measured."""

from __future__ import annotations

from typing import Any

from adaspa_cli.maskfiles.stored import StoredMasks
from adaspa_cli.masks import MaskPolicy


def mask_file_report(policy: MaskPolicy | None) -> dict[str, Any] | None:
    """The part of a report about loaded masks; None for a run that searched its own. Waits for the device.

    ``checks`` has the recall of each layer and head twice: ``stored``, of the search that made the file, and
    ``measured``, on the attention of this video.
    """
    if not isinstance(policy, StoredMasks):
        return None
    return {
        "file": policy.file.path.name,
        "checksum": policy.file.checksum,
        "schedule": [{"step": step, "searched_at": stored} for step, stored in policy.schedule],
        "min_recall": policy.min_recall,
        "below": sum(check.below for check in policy.checks.values()),
        "searched": sum(check.searched for check in policy.checks.values()),
        "checks": [
            {
                "layer": layer,
                "branch": branch,
                "sample": sample,
                "step": check.step,
                "stored": [round(value, 6) for value in check.stored.tolist()],
                "measured": [round(value, 6) for value in check.measured.tolist()],
                "below": check.below,
                "searched": check.searched,
            }
            for (layer, branch, sample), check in policy.checks.items()
        ],
    }
