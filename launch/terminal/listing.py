"""What commands list of a registry: all of its items, or one with every field of its config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.launch.terminal.tables import print_line, print_table
from efface.registry import Registry

if TYPE_CHECKING:
    from efface.config_fields import Entry


@dataclass(frozen=True)
class Listing:
    """Entries of a registry, some with keys of their kind.

    detailed: one was requested by name.
    """

    entries: "Sequence[Entry]"
    detailed: bool = False

    def only(self, name: str | None, registry: Registry[Any]) -> "Listing":
        """The one called `name`, all where that is None. Raises UserError for a name the registry does not know."""
        if name is None:
            return self
        registry.get(name)
        return Listing([entry for entry in self.entries if entry["name"] == name], detailed=True)

    def show(self, columns: Mapping[str, str]) -> None:
        """A table; or the one item with a table of its fields. columns: header -> key of an entry."""
        if not self.detailed:
            cells: Sequence[Mapping[str, object]] = self.entries
            print_table(list(columns), [[entry[key] for key in columns.values()] for entry in cells])
            return
        (entry,) = self.entries
        print_line(f"{entry['name']}  {entry['summary']}")
        fields = [[f["name"], str(f.get("default", "-")), f["description"]] for f in entry["fields"]]
        print_table(["field", "default", ""], fields)
        if "note" in entry:
            print_line(entry["note"])
