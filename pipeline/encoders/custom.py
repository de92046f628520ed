"""Encoders of one's own: `module:Class`, a subclass of `Encoder` built from `LoadOptions` (see `base`).

The module is looked for where Python looks and then in the working folder. Loading it runs its code, as any import
does.
"""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType

from pipeline.encoders.base import Encoder, LoadOptions
from pipeline.encoders.spec import Spec
from pipeline.encoders.table import ENCODERS
from pipeline.errors import UnknownNameError, UserError
from pipeline.files import file_sha256, spaced_json_digest

_KNOWN = ("abc", "builtins", "pipeline", "torch", "typing")
"""Packages whose classes are not the user's own."""


def load(spec: Spec, options: LoadOptions) -> Encoder:
    """Import the module and build the class.

    Raises:
        UserError: There is no such module or class, or it is no encoder.
    """
    module = _import(spec)
    known = [name for name, value in vars(module).items() if _is_encoder(value)]
    if spec.name not in known:
        raise UnknownNameError("encoder class", spec.name, known, f"{spec.family} (--encoder {spec.text})")
    encoder: Encoder = getattr(module, spec.name)(options)
    return encoder


def own_source(encoder: Encoder) -> dict[str, str]:
    """Return {"source": digest} of the files that define a class of one's own, its bases too; {} for a known family.

    It stands in every store's key, so that changed code is never taken for the code that made the features. Modules
    that those files import are not followed: `version` in the encoder's own key is for them.
    """
    own = [each for each in type(encoder).__mro__ if each.__module__.partition(".")[0] not in _KNOWN]
    files = {str(path) for each in own if (path := _source_file(each)) is not None}
    digests = sorted(file_sha256(Path(file)) for file in files)
    return {"source": spaced_json_digest(digests)} if own else {}


def _source_file(kind: type) -> Path | None:
    try:
        path = Path(inspect.getfile(kind))
    except (TypeError, OSError):  # typed at a prompt
        return None
    return path if path.is_file() else None


def _is_encoder(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Encoder) and not inspect.isabstract(value)


def _import(spec: Spec) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(spec.family)
    except ModuleNotFoundError as error:
        if error.name != spec.family.partition(".")[0] and error.name != spec.family:
            raise
        raise UserError(
            expected=f"a known encoder family ({', '.join(ENCODERS)}) or a module to import",
            found=repr(spec.family),
            where="--encoder",
            remedy=f"for a class of your own, {spec.family}.py must lie in the working folder or be installed",
        ) from error
    finally:
        sys.path.remove(here)
