"""The mask file in a report: which one, and the measured recall of its masks."""

from __future__ import annotations

from adaspa_cli.maskfiles.stored import StoredMasks
from adaspa_cli.masks import MaskPolicy
from adaspa_cli.report.schema import LoadedAt, MaskCheck, MaskFileUse


def mask_file_use(policy: MaskPolicy | None) -> MaskFileUse | None:
    """What a run loaded and how well it fitted; None for a run that searched its own masks. Waits for the device."""
    if not isinstance(policy, StoredMasks):
        return None
    checks = tuple(
        MaskCheck(
            layer,
            branch,
            sample,
            check.step,
            stored=tuple(round(value, 6) for value in check.stored.tolist()),
            measured=tuple(round(value, 6) for value in check.measured.tolist()),
            below=bool(check.below),
            searched=bool(check.searched),
        )
        for (layer, branch, sample), check in policy.checks.items()
    )
    return MaskFileUse(
        file=policy.file.path.name,
        checksum=policy.file.checksum,
        schedule=tuple(LoadedAt(step, stored) for step, stored in policy.schedule),
        min_recall=policy.min_recall,
        below=sum(check.below for check in checks),
        searched=sum(check.searched for check in checks),
        checks=checks,
    )
