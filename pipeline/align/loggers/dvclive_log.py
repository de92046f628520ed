"""DVCLive: `metrics.json`, `params.yaml` and a table for each curve below `plots/metrics/`."""

from pathlib import Path

from pipeline.align.loggers.base import LoggedSeed


def write(seed: LoggedSeed, folder: Path) -> None:
    """Write a seed; no experiment of DVC is made of it, no dvc.yaml is touched, no machine is watched."""
    from dvclive import Live

    with Live(
        str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False, cache_images=False
    ) as live:
        live.log_params(seed.flat_settings())
        for step, values in seed.points():
            live.step = step
            for name, value in values.items():
                live.log_metric(name, value)
        for name, value in seed.final().items():
            live.log_metric(name, value, plot=False)
