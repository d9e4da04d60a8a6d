"""The guarantees in deploy/GUARANTEES.md name tests that exist."""

import re
import unittest

from project import DEPLOY, ROOT

TESTS = ROOT / "tests/integration"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (DEPLOY / "GUARANTEES.md").read_text().splitlines()
    if line.startswith("|") and not re.match(r"\|(---|\s*Fault\s*\|)", line)
]
NAMED = re.compile(r"`((?:\w+::)+\w+)`")


def fault_of(name):
    """What is wrong with the name of a test; None if it is one."""
    *modules, function = name.split("::")
    place = TESTS.joinpath(*modules)
    files = [file for file in (place.with_suffix(".rs"), place / "mod.rs") if file.exists()]
    if not files:
        return "no such module"
    text = files[0].read_text()
    if not re.search(rf"\bfn {function}\(", text):
        return "no such function"
    marked = rf"#\[(?:tokio::)?test[^\n]*\]\n(?:#\[[^\n]*\n)*(?:async )?fn {function}\("
    # A line of its own in the list of a macro that makes tests.
    listed = rf"(?m)^    {function},?$"
    return None if re.search(marked, text) or re.search(listed, text) else "no test"


class Guarantees(unittest.TestCase):
    def test_each_row_names_tests_that_exist(self):
        self.assertGreater(len(ROWS), 20)
        for row in ROWS:
            with self.subTest(fault=row[0]):
                self.assertEqual(len(row), 4, row)
                names = NAMED.findall(row[2])
                # Nothing but names, so that a misspelt one is not passed over.
                self.assertEqual(", ".join(f"`{name}`" for name in names), row[2])
                self.assertTrue(names, "shown by nothing")
                self.assertEqual({name: fault_of(name) for name in names}, dict.fromkeys(names))

    def test_what_does_not_exist_is_found(self):
        for name, fault in {
            "redis_down::redis_killed_and_started_again": None,
            "leases::fifty_refreshers_make_one_refresh": None,
            "keyring::a_cancelled_leader_harms_nobody": None,
            "nowhere::redis_killed_and_started_again": "no such module",
            "redis_down::redis_is_immortal": "no such function",
            "redis_down::call": "no test",
        }.items():
            self.assertEqual(fault_of(name), fault, name)

    def test_the_page_can_be_found(self):
        for page in (ROOT / "README.md", DEPLOY / "README.md"):
            self.assertRegex(page.read_text(), r"\]\((deploy/)?GUARANTEES\.md\)", page)


if __name__ == "__main__":
    unittest.main()
