"""`pipeline extract`: run frozen encoders once and keep the features of every layer."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipeline.commands.data import make_missing
from pipeline.commands.options import PARAMS, Address, Engine, Json, Params, Quiet, takes_settings, together
from pipeline.commands.output import emit_json, say
from pipeline.errors import UserError
from pipeline.extract.config import ExtractConfig
from pipeline.words import listing, on_stderr


@takes_settings(ExtractConfig)
def extract(
    given: dict[str, Any],
    *,
    engine: Engine = "local",
    address: Address = None,
    params: Params = PARAMS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run frozen encoders once and keep the features of every layer.

    Without --dataset, --encoder and --out: every data set that params.yaml names with both of its encoders; a data set
    that is missing is made first. A second run does nothing, and asking for more layers later computes only those. A
    run that was killed goes on where it stopped.

    Example: pipeline extract --layers all

    Example: pipeline extract --dataset data/0_raw/mine --encoder st:ORG/NAME --out data/1_features/mine/name

    Example: pipeline extract --layers all --engine ray --address auto
    """
    from pipeline.engines import open_engine
    from pipeline.extract.run import extract as extract_here
    from pipeline.progress import progress_bar

    if "decode_cpus" in given and engine == "local":
        remedy = "without a cluster use --workers, the number of threads that decode"
        raise UserError(expected="--engine ray beside it", found="none", where="--decode-cpus", remedy=remedy)
    share = _share(given.pop("worker_index", None), given.pop("num_workers", None), engine, quiet=quiet)
    results = []
    here = engine == "local" and address is None
    with nullcontext() if here else open_engine(engine, address) as chosen:
        work = chosen.extract if chosen else extract_here
        for config in _configs({**given, **share}, params, quiet=quiet):
            with progress_bar(quiet=quiet) as progress:
                result = work(config, progress)
            results.append(result)
            if not json:
                say(result.sentence())
    if json:
        plain = [result.to_json() for result in results]
        emit_json(plain[0] if "dataset" in given else plain)


def _share(worker_index: int | None, num_workers: int | None, engine: str, *, quiet: bool) -> dict[str, int]:
    """Return which worker this is, as fields of the settings; empty where there is only one."""
    from pipeline.runtime import share_of

    if engine != "local":
        if worker_index is not None or num_workers is not None:
            raise UserError(
                expected="an engine that shares the work out, or workers by hand",
                found="--worker-index or --num-workers too",
                where=f"--engine {engine}",
            )
        return {}
    share = share_of(worker_index, num_workers, os.environ)
    if share.source and not quiet:
        on_stderr(
            f"worker {share.index} of {share.count}, because {share.source} is set in the environment: "
            "it decides what is done first, not what is done (--num-workers 1 to ignore it)"
        )
    stated = num_workers is not None or share.count > 1
    return {"worker_index": share.index, "num_workers": share.count} if stated else {}


def _configs(given: dict[str, Any], params: Path, *, quiet: bool) -> list[ExtractConfig]:
    from pipeline.config import build, load_params
    from pipeline.extract.config import extract_config, named_stores

    if together(given, ("dataset", "encoder", "out"), where="pipeline extract"):
        return [build(ExtractConfig, given, where="pipeline extract")]
    settings = load_params(params)
    stores = named_stores(settings, str(params))
    if not stores:
        raise UserError(expected="datasets, image_encoder and text_encoder in it", found="none", where=str(params))
    if not quiet:
        sets, encoders = (listing(list(dict.fromkeys(names))) for names in zip(*stores, strict=True))
        on_stderr(f"As {params} says: extract {sets} with {encoders} into {Path('data/1_features')}")
    make_missing(settings, quiet=quiet)
    return [extract_config(settings, dataset, encoder, where=str(params), **given) for dataset, encoder in stores]
