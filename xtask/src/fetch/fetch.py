"""The two steps of `cargo xtask fetch` that need Python: the standard library and pip's command line.

fetch.py sdist NAME VERSION FOLDER
    Downloads a source distribution. `pip download` would run the package's build to learn its metadata; so pip is
    only asked where the file is, on whatever index it is configured to use, and the file is fetched by its address.
    Not every index states digests there; what is unpacked is checked against the pins in any case.
fetch.py unpack FOLDER PATTERN=TARGET... -- ARCHIVE...
    Writes the members of tar and ZIP archives that match a pattern, in which * does not stand for a slash. A TARGET
    that ends in a slash is a folder, which gets members by their base name; any other TARGET is one file, which gets
    the members' contents one after another in the order of their names. Beyond that, names in an archive do not
    decide where anything is written.
"""

import fnmatch
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
import zipfile

BLOCK = 1 << 20


def sdist(name, version, folder):
    pip = [sys.executable, "-m", "pip", "index", "versions", name, "--no-binary", name, "-vv"]
    listing = subprocess.run(pip, check=True, capture_output=True, text=True).stdout
    file = re.escape(f"{name.replace('-', '_')}-{version}.tar.gz")
    found = re.search(rf"https?://[^\s#]+/{file}", listing)
    if not found:
        sys.exit(f"pip lists no source of {name} {version}")
    target = os.path.join(folder, os.path.basename(found.group()))
    with urllib.request.urlopen(found.group(), timeout=180) as source, open(target, "wb") as out:
        while block := source.read(BLOCK):
            out.write(block)


def members(path):
    """(name, function that opens it) of every regular file in an archive."""
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        return [(m.filename, lambda m=m: archive.open(m)) for m in archive.infolist() if not m.is_dir()]
    archive = tarfile.open(path)
    return [(m.name, lambda m=m: archive.extractfile(m)) for m in archive.getmembers() if m.isfile()]


def unpack(folder, rules, archives):
    inside = sorted((pair for path in archives for pair in members(path)), key=lambda pair: pair[0])
    for pattern, target in (rule.split("=", 1) for rule in rules):
        deep = pattern.count("/")
        matching = [(n, o) for n, o in inside if n.count("/") == deep and fnmatch.fnmatchcase(n, pattern)]
        if not matching:
            sys.exit(f"no member matches {pattern}")
        joined = not target.endswith("/")
        for i, (name, opened) in enumerate(matching):
            path = os.path.join(folder, target if joined else target + os.path.basename(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with opened() as source, open(path, "ab" if joined and i else "wb") as out:
                while block := source.read(BLOCK):
                    out.write(block)


if sys.argv[1] == "sdist":
    sdist(*sys.argv[2:])
else:
    end = sys.argv.index("--")
    unpack(sys.argv[2], sys.argv[3:end], sys.argv[end + 1 :])
