"""Functions shared by the benchmarks: describe the machine, round numbers, and write result files."""

import json
import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Describe this machine's GPU (or, without one, its processor), its threads and its load."""
    import torch  # imported here, so that torch does not add to a process whose memory is measured

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    processors = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else processors[0] if processors else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def rounded(value: Any) -> Any:
    """Round the floats in a result to four significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def save(path: str | Path, result: dict[str, Any]) -> str:
    """Write a result and a description of the machine to a JSON file. Returns the JSON text."""
    text = json.dumps({"machine": machine(), **rounded(result)}, indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
    return text
