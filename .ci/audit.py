"""What `make audit` says: known weaknesses of the installed packages, and what was not looked up.

Reads pip-audit's JSON. Exit status: 0 only where every package but this one was looked up and has
no known weakness; a package that was skipped may have one.
"""

import json
import sys

OURS = "rib-engine"


def main(text: str) -> int:
    packages = [each for each in json.loads(text)["dependencies"] if each["name"] != OURS]
    skipped = [each for each in packages if "skip_reason" in each]
    weak = [each for each in packages if each.get("vulns")]
    for package in weak:
        for fault in package["vulns"]:
            cure = ", ".join(fault["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {fault['id']}; cured by {cure}")
    for package in skipped:
        print(f"{package['name']} was not looked up: {package['skip_reason']}")
    looked_up = len(packages) - len(skipped)
    print(f"{looked_up} of {len(packages)} packages looked up, {len(weak)} with known weaknesses")
    return int(bool(weak or skipped or not packages))


if __name__ == "__main__":
    sys.exit(main(sys.stdin.read()))
