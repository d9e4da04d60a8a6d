"""What the README lists is what there is."""

import re
import unittest

from project import DEPLOY, ROOT

README = (ROOT / "README.md").read_text()


class Readme(unittest.TestCase):
    def test_the_error_table_has_every_reason_and_no_other(self):
        table = README[README.index("\n## Errors") : README.index("\n## For security reviewers")]
        rows = re.findall(r"(?m)^\| [A-Z_]+ \| (.*?) \|", table)
        listed = {reason for row in rows for reason in re.findall(r"`([A-Z_]+)`", row)}
        source = (ROOT / "src/service/error.rs").read_text()
        self.assertEqual(listed, set(re.findall(r'=> "([A-Z_]+)",', source)))

    def test_the_redis_rights_are_those_of_deploy(self):
        (rights,) = [
            line
            for line in (DEPLOY / "redis-rights.acl").read_text().splitlines()
            if not line.startswith("#")
        ]
        self.assertIn(f"ACL SETUSER workflow-secrets on >PASSWORD {rights}\n", README)

    def test_links_lead_somewhere(self):
        for path in (ROOT / "README.md", DEPLOY / "README.md"):
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
                self.assertTrue((path.parent / target).exists(), f"{path}: {target}")


if __name__ == "__main__":
    unittest.main()
