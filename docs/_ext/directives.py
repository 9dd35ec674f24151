"""The directives `jaxgpt-command` and `jaxgpt-parameters`, whose pages are made from the code."""

from command_reference import describe, groups_of, introduction
from docutils import nodes
from parameter_reference import other_names, own_names
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandDirective(SphinxDirective):
    """All that `jaxgpt COMMAND --help-all` says, with a link to each flag."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a section for each group of flags, after what the command is for."""
        command = self.arguments[0]
        found = self.parse_text_to_nodes(introduction(command))
        for title, names in groups_of(command).items():
            section = nodes.section("", nodes.title(title, title), ids=[nodes.make_id(title.partition(":")[0])])
            section["names"] = [title.lower()]
            section += self.parse_text_to_nodes("\n\n".join(describe(command, name) for name in names))
            found.append(section)
        return found


class ParametersDirective(SphinxDirective):
    """Our own names with the argument `ours`; without it, the table of each dialect."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the parsed tables."""
        if self.arguments:
            return self.parse_text_to_nodes(own_names())
        return self.parse_text_to_nodes(other_names(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("jaxgpt-command", CommandDirective)
    app.add_directive("jaxgpt-parameters", ParametersDirective)
    return {"parallel_read_safe": True}
