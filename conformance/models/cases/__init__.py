"""Every case by the name of its folder, of every file here."""

import importlib
import pkgutil

FAMILIES = [importlib.import_module(f"cases.{module.name}") for module in pkgutil.iter_modules(__path__)]
CASES = {name: case for family in FAMILIES for name, case in family.CASES.items()}
