"""Registers AetherNet as soon as a program imports spandrel; installed beside the packages.

A start-up line runs `watch` whenever Python starts, in every program of that Python. So nothing but
`sys` is imported here before spandrel is, and no failure of ours may reach the program: Python
starts and spandrel is imported whatever happens to us.
"""

import sys

# Importing typing, or annotations from __future__, would take longer than all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "AETHER_SPANDREL_AUTO"
"""Environment variable that switches registration off when it is 0."""

pending = False
"""Whether spandrel was imported by `aether_spandrel.arch`, which then registers itself."""


def watch() -> None:
    """Have AetherNet registered when spandrel is first imported; calling it again does nothing."""
    try:
        # `os` is there since Python started; without it, as in an embedded one, there is no switch.
        environment = getattr(sys.modules.get("os"), "environ", {})
        if environment.get(SWITCH, "1") == "0":
            return
        # Another copy of this module, of another version perhaps, may have been here before.
        if any(type(finder).__name__ == AetherSpandrelFinder.__name__ for finder in sys.meta_path):
            return
        if "spandrel" in sys.modules:
            register()
        else:
            sys.meta_path.insert(0, AetherSpandrelFinder())  # pyright: ignore[reportArgumentType]
    except BaseException as error:  # noqa: BLE001  Python must start
        _warn(error)


class AetherSpandrelFinder:
    """Finds spandrel as the others do, and has it loaded by `AetherSpandrelLoader`."""

    def __init__(self) -> None:
        """Start with no search under way."""
        self._searching: set[int] = set()

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """The specification of spandrel that the other finders give; None for anything else."""
        if fullname != "spandrel":
            return None
        import _thread

        thread = _thread.get_ident()
        if thread in self._searching:
            return None  # another hook of this kind asks all finders, and so us again
        self._searching.add(thread)
        try:
            spec = self._find(fullname, path, target)
        finally:
            self._searching.discard(thread)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = AetherSpandrelLoader(spec.loader)  # type: ignore[assignment]
        return spec

    def _find(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None"
    ) -> "ModuleSpec | None":
        for finder in list(sys.meta_path):
            if finder is self:
                continue
            try:
                spec = finder.find_spec(fullname, path, target)
            except BaseException:  # noqa: BLE001  a broken hook of somebody else
                continue
            if spec is not None:
                return spec
        return None


class AetherSpandrelLoader:
    """Loads spandrel with its own loader, then registers AetherNet."""

    def __init__(self, loader: "Any") -> None:
        """Keep the loader that does the work."""
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        """Everything but `exec_module` is the other loader's."""
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        """Execute spandrel, give it back its loader, and register."""
        loader = self._loader
        spec = module.__spec__
        if spec is not None:
            spec.loader = loader
            module.__loader__ = loader
        loader.exec_module(module)
        register()


def register() -> None:
    """Register AetherNet with spandrel; what goes wrong becomes one warning."""
    global pending
    arch = sys.modules.get("aether_spandrel.arch")
    if arch is not None and not hasattr(arch, "install"):
        pending = True  # it is being imported right now, and is what imported spandrel
        return
    try:
        from aether_spandrel.arch import install

        install()
    except BaseException as error:  # noqa: BLE001  spandrel must be imported
        _warn(error)


def _warn(error: BaseException) -> None:
    text = (
        f"aether-spandrel could not register AetherNet ({type(error).__name__}: {error}); "
        "spandrel works without it. Run `aethernet doctor`, reinstall aether-spandrel, or set "
        f"{SWITCH}=0 to switch this off."
    )
    try:
        import warnings

        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except BaseException:  # noqa: BLE001  warnings that are errors, or no warnings at all
        stream = sys.stderr
        if stream is not None:
            stream.write(text + "\n")
