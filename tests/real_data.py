"""Where tests look for data that is not in the repository: the folder NGDIFF_DATA, or ../shared/data beside the checkout."""

import os
from pathlib import Path

FOLDER = Path(os.environ.get("NGDIFF_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
TOFU = FOLDER / "tofu"
LOGS = FOLDER / "tofu_reference_logs"
REMEDY = "set NGDIFF_DATA to the folder that holds it"
