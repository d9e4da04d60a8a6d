"""What the README lists is what there is."""

import re
import unittest

from project import DEPLOY, ROOT

README = (ROOT / "README.md").read_text()
REASONS = {
    *re.findall(r'=> "([A-Z_]+)",', (ROOT / "src/service/error.rs").read_text()),
    *re.findall(r'set_error_info\("([A-Z_]+)"', (ROOT / "src/grpc/status.rs").read_text()),
}


class Readme(unittest.TestCase):
    def test_the_error_table_has_every_reason_and_no_other(self):
        table = README[README.index("\n## Errors") : README.index("\n## For security reviewers")]
        rows = re.findall(r"(?m)^\| [A-Z_]+ \| (.*?) \|", table)
        listed = {reason for row in rows for reason in re.findall(r"`([A-Z_]+)`", row)}
        self.assertEqual(listed, REASONS)

    def test_the_api_lists_every_reason(self):
        text = (ROOT / "proto/workflowsecrets/v1/secrets.proto").read_text()
        table = text[text.index("# Errors") : text.index("The common ones")]
        # Right of the codes, some of which are called like reasons.
        right = " ".join(line[25:] for line in table.splitlines())
        self.assertEqual(REASONS - set(re.findall(r"[A-Z_]+", right)), set())

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
