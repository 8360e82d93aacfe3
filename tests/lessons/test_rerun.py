"""Cells run twice and out of order: a name that cells share means one thing, and no cell changes another's object.

This is read from the code, without running it. A function reads its names when it is called, so a name of the notebook
that a function reads is shared even where the function's own cell binds it.
"""

import ast
import builtins
from collections import Counter
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("0*.ipynb"))

CHANGING_METHODS = {
    *("add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault"),
    *("sort", "update", "eval", "load_state_dict", "train", "zero_grad"),
}
"""Methods that change their object; in torch those whose name ends in an underscore do too."""
CHANGING_FUNCTIONS = {"delattr", "setattr", "train"}
"""Functions that change their first argument; those of torch whose name ends in an underscore do too."""
OWN_SCOPE = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Cell(ast.NodeVisitor):
    """Names that a cell binds, names that it shares with other cells, and names of others whose object it changes."""

    def __init__(self, source):
        self.bound, self.shared, self.changed = set(), set(), set()
        self.scopes = []  # of each function and comprehension around: its names, and whether it runs later
        self.visit(ast.parse(source))

    def is_local(self, name):
        return any(name in names for names, _ in self.scopes)

    def is_shared(self, name):
        runs_later = any(later for _, later in self.scopes)
        return not self.is_local(name) and (runs_later or name not in self.bound)

    def bind(self, name):
        if not self.is_local(name):
            self.bound.add(name)

    def change(self, node):
        """Note that the object is changed which ``node`` is, or is a part of."""
        if isinstance(name := root(node), ast.Name) and self.is_shared(name.id):
            self.changed.add(name.id)

    def visit_scope(self, names, later, nodes):
        self.scopes.append((names, later))
        for node in nodes:
            self.visit(node)
        self.scopes.pop()

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store):
            self.bind(node.id)
        elif self.is_shared(node.id):
            (self.shared if isinstance(node.ctx, ast.Load) else self.changed).add(node.id)

    def visit_part(self, node):
        if not isinstance(node.ctx, ast.Load):
            self.change(node)
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        self.change(node.target)
        if isinstance(node.target, ast.Name) and self.is_shared(node.target.id):
            self.shared.add(node.target.id)
        self.generic_visit(node)

    def visit_Call(self, node):
        function, owner = node.func, root(node.func)
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        in_place = name.endswith("_") and not name.endswith("__")
        of_torch = isinstance(owner, ast.Name) and owner.id == "torch"
        if (name in CHANGING_FUNCTIONS and function is owner) or (in_place and of_torch):
            self.change(node.args[0])
        elif isinstance(function, ast.Attribute) and (in_place or name in CHANGING_METHODS):
            self.change(function.value)
        self.generic_visit(node)

    def visit_value_first(self, node):
        first = getattr(node, "iter", None) or getattr(node, "value", None)
        for child in [first, *(child for child in ast.iter_child_nodes(node) if child is not first)]:
            if child is not None:
                self.visit(child)

    def visit_import(self, node):
        for name in names_bound_in([node]):
            self.bind(name)

    def visit_ExceptHandler(self, node):
        if node.name:
            self.bind(node.name)
        self.generic_visit(node)

    def visit_function(self, node):
        arguments = node.args
        for child in [*getattr(node, "decorator_list", []), *arguments.defaults, *filter(None, arguments.kw_defaults)]:
            self.visit(child)
        if not isinstance(node, ast.Lambda):
            self.bind(node.name)
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        names = {argument.arg for argument in ast.walk(arguments) if isinstance(argument, ast.arg)}
        self.visit_scope(names | names_bound_in(body), True, body)

    def visit_ClassDef(self, node):
        for child in [*node.decorator_list, *node.bases, *node.keywords]:
            self.visit(child)
        self.bind(node.name)
        self.visit_scope(names_bound_in(node.body), False, node.body)

    def visit_comprehension_of(self, node):
        parts = [part for generator in node.generators for part in (generator.iter, *generator.ifs)]
        parts += [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self.visit_scope(names_bound_in(generator.target for generator in node.generators), False, parts)

    visit_Attribute = visit_Subscript = visit_part
    visit_Assign = visit_AnnAssign = visit_NamedExpr = visit_For = visit_value_first
    visit_Import = visit_ImportFrom = visit_import
    visit_FunctionDef = visit_Lambda = visit_function
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_of


def root(node):
    """The innermost object of ``a.b[c].d``: a."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node


def names_bound_in(nodes):
    """Names that these nodes bind in their own scope."""
    names, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)):
            names.add(node.name)
        if not isinstance(node, OWN_SCOPE):
            todo += ast.iter_child_nodes(node)
    return names


def faults(sources):
    """What keeps the cells of a notebook from being run again, a line each."""
    cells = [Cell(source) for source in sources]
    binders = Counter(name for cell in cells for name in cell.bound)
    found = []
    for number, cell in enumerate(cells, start=1):
        unclear = [
            name for name in cell.shared if binders[name] != 1 and (binders[name] or not hasattr(builtins, name))
        ]
        found += [f"cell {number} reads {name!r}, which {binders[name]} cells bind" for name in sorted(unclear)]
        found += [f"cell {number} changes {name!r}" for name in sorted(cell.changed)]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_can_be_run_twice_and_out_of_order(path):
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert faults(sources) == []


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (["x = 1", "print(x)", "x = 2"], ["cell 2 reads 'x', which 2 cells bind"]),
        (["x = 1", "x = x + 1"], ["cell 2 reads 'x', which 2 cells bind"]),
        (["x = 1", "for x in x: pass"], ["cell 2 reads 'x', which 2 cells bind"]),
        (["x = 1", "x = 2\ndef f(): return x", "f()"], ["cell 2 reads 'x', which 2 cells bind"]),
        (["def f(): pass", "def f(): pass", "f()"], ["cell 3 reads 'f', which 2 cells bind"]),
        (["print(x)"], ["cell 1 reads 'x', which 0 cells bind"]),
        (["x = 1", "x += 1"], ["cell 2 reads 'x', which 2 cells bind", "cell 2 changes 'x'"]),
        (["x = {}", "x['a'] = 1"], ["cell 2 changes 'x'"]),
        (["x = {}", "x.a.b[0].append(1)"], ["cell 2 changes 'x'"]),
        (["x = 1", "del x"], ["cell 2 changes 'x'"]),
        (["x = 1", "def f(): x.a = 1"], ["cell 2 changes 'x'"]),
        (["import torch", "x = 1", "torch.nn.init.zeros_(x.weight)"], ["cell 3 changes 'x'"]),
        (["x = 1", "x.weight.fill_(1)"], ["cell 2 changes 'x'"]),
        (["from a import train", "x = 1", "train(x, 2)"], ["cell 3 changes 'x'"]),
        (["x = 1\nprint(x)", "x = 2\nx += 1\nx.a = 1\nprint(x)"], []),
        (["x = 1", "[x for x in range(3)]", "y = [a * x for a in (1, 2)]", "lambda x: x + 1"], []),
        (["def f(x):\n    y = x\n    y[0] = 1\n    return y", "f([1])"], []),
        (["class A(dict):\n    b = 1\n    def c(self): self.b = 2", "A()"], []),
    ],
)
def test_what_keeps_cells_from_being_run_again_is_found(sources, found):
    assert faults(sources) == found
