"""`python -m ternfleet` runs the program that the wheel installed beside this module."""

import os
import shutil
import sys
import sysconfig


def program() -> str:
    """The path of the program `ternfleet`: in the folder of scripts, beside the interpreter, or on PATH."""
    folders = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    if os.name == "posix":
        folders.append(sysconfig.get_path("scripts", "posix_user"))
    for folder in folders:
        path = os.path.join(folder, "ternfleet")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("ternfleet")
    if found is None:
        sys.exit("python -m ternfleet: the program ternfleet is in none of " + ", ".join(folders) + ", nor on PATH")
    return found


if __name__ == "__main__":
    path = program()
    os.execv(path, [path, *sys.argv[1:]])
