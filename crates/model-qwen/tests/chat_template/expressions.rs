//! Filters, tests, methods and operators, beside jinja2's.

use super::*;

/// Cases of expressions.json.
const NUM_CASES: usize = 309;

/// What jinja2 renders of these, as transformers sets it up.
#[test]
fn expressions_give_what_jinja2_gives() {
    let messages = [json!({"role": "user", "content": "Hi <b>\"é\" & it's"})];
    for (source, expected) in [
        (
            "{{ messages[0].content|e }}",
            "Hi &lt;b&gt;&#34;é&#34; &amp; it&#39;s",
        ),
        (
            "{{ messages[0].content|escape|escape }}",
            "Hi &lt;b&gt;&#34;é&#34; &amp; it&#39;s",
        ),
        ("{{ 5|e }}{{ nothing|e }}", "5"),
        (
            "{{ {'b': 1, 'a': (1,)}|items|list }}",
            "[('b', 1), ('a', (1,))]",
        ),
        ("{{ {'b': 1, 'a': 2}|dictsort }}", "[('a', 2), ('b', 1)]"),
        (
            "{{ {'b': 1}.items()|list }} {{ () }} {{ [(1, 'x')] }}",
            "[('b', 1)] () [(1, 'x')]",
        ),
        (
            "{{ (1, 2)|string }} {{ ['a', ('b', 2.5)]|join('-') }}",
            "(1, 2) a-('b', 2.5)",
        ),
        (
            "{{ {'b': 'x', 'a': [{'d': 1, 'c': none}]}|pprint }}",
            "{'a': [{'c': None, 'd': 1}], 'b': 'x'}",
        ),
        ("{{ 'x'|pprint }}", "'x'"),
        (
            "[{{ messages[0]|attr('role') }}]{% set ns = namespace(a=1) %}{{ ns|attr('a') }}",
            "[]1",
        ),
        (
            "{{ 'x-y'.removeprefix('x') }} {{ 'x-y'.removesuffix('-y') }} {{ 'x'.removeprefix('y') }}",
            "-y x x",
        ),
        (
            "{{ 'a,b,c'.rsplit(',', 1) }} {{ 'a,b'.rsplit(',') }}",
            "['a,b', 'c'] ['a', 'b']",
        ),
        (
            "{{ ' a  b c '.rsplit(none, 1) }} {{ ' a  b '.rsplit() }}",
            "[' a  b', 'c'] ['a', 'b']",
        ),
        (
            "{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }}",
            "('a', '-', 'b-c') ('a-b', '-', 'c')",
        ),
        (
            "{{ 'ab'.partition('-') }} {{ 'ab'.rpartition('-') }}",
            "('ab', '', '') ('', '', 'ab')",
        ),
        (
            "{{ 'éabab'.index('b') }} {{ 'éabab'.rindex('b') }} {{ [1, 2].index(2) }}",
            "2 4 1",
        ),
        (
            "{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '*') }}|{{ 'abc'.center(8, '*') }}|{{ 'ab'.center(5, '*') }}",
            "a  |**a|**abc***|**ab*",
        ),
        (
            "{{ 'abc'.zfill(5) }} {{ '-5'.zfill(4) }} {{ 'abc'.zfill(1) }}",
            "00abc -005 abc",
        ),
        (
            "{{ 'a,b,c'.rsplit(',', maxsplit=1) }} {{ 'a,b,c'.split(',', maxsplit=1) }} {{ 'a b c'.split(maxsplit=1) }}",
            "['a,b', 'c'] ['a', 'b,c'] ['a', 'b c']",
        ),
        (
            "{{ 'a b c'.split(sep=none) }} {{ 'a\nb'.splitlines(keepends=true) }}",
            "['a', 'b', 'c'] ['a\\n', 'b']",
        ),
        (
            "{{ 'éabab'.find('b', 3) }} {{ 'éabab'.find('b', 0, 2) }} {{ 'éabab'.rfind('b', -3, -1) }} {{ 'ab'.find('', 3) }}",
            "4 -1 2 -1",
        ),
        (
            "{{ 'ab'.index('b', 1) }} {{ 'abab'.rindex('a', 0, 2) }} {{ [1, 2, 1].index(1, 1) }} {{ 'ab'.find('x') }}",
            "1 0 2 -1",
        ),
        ("[{{ 'a'.ljust(-1) }}{{ 'b'.zfill(-3) }}]", "[ab]"),
        (
            "{% set c = cycler('a', 'b') %}{{ c.current }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
            "aabNonea",
        ),
        (
            "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}",
            "ab,",
        ),
    ] {
        let rendered = from_source(source).render(&messages, &RenderOptions::default());
        let rendered = rendered.unwrap_or_else(|error| panic!("{source}: {error}"));
        assert_eq!(rendered, expected, "{source}");
    }
    for (source, expected) in [
        ("{{ 'ab'.index('x') }}", "substring not found"),
        ("{{ [1].index(2) }}", "is not in list"),
        ("{{ 'ab'.partition('') }}", "empty separator"),
        ("{{ [1, 2].index(1, 1) }}", "is not in list"),
        ("{{ 'ab'.index('a', 1) }}", "substring not found"),
        ("{{ 'a'.zfill(3, '*') }}", "too many arguments"),
        ("{{ 'a'.split(by=1) }}", "unknown keyword argument"),
        ("{{ cycler() }}", "at least one item"),
        ("{{ 'a'.ljust(1000000000) }}", "does more work"),
    ] {
        let error = from_source(source)
            .render(&messages, &RenderOptions::default())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{source}: {error}");
    }
}

#[test]
fn expressions_give_what_transformers_gives() {
    let golden = golden("expressions");
    let messages = golden["messages"].as_array().unwrap();
    let options = RenderOptions {
        tools: Some(golden["tools"].clone()),
        ..RenderOptions::default()
    };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), NUM_CASES);
    for case in cases {
        let source = case["source"].as_str().unwrap();
        let template = ChatTemplate::from_source(source, Map::new());
        let rendered = template.and_then(|template| template.render(messages, &options));
        match case["expected"].as_str() {
            Some(expected) => {
                let rendered = rendered.unwrap_or_else(|error| panic!("{source}: {error}"));
                assert_eq!(rendered, expected, "{source}");
            }
            None => assert!(rendered.is_err(), "{source}: expected {}", case["error"]),
        }
    }
}

/// What transformers renders, and this crate refuses by name.
#[test]
fn what_is_not_supported_is_refused() {
    for (source, expected) in [
        ("{{ 'see http://a.b'|urlize }}", "urlize: not supported"),
        ("{{ [1, 2]|random }}", "random: not supported"),
        ("{{ lipsum() }}", "lipsum: not supported"),
        ("{{ '&copy;'|striptags }}", "`&copy` is not supported"),
        ("{{ '{:1000}'.format(1) }}", "widths below 1000"),
        ("{{ '%s' % ('a', 'b') }}", "not all arguments converted"),
        ("{{ '%s %s' % 'a' }}", "not enough arguments"),
        ("{{ '%y' % 1 }}", "unsupported format character 'y'"),
        ("{{ '%d' % 'a' }}", "a real number is required, not string"),
        ("{{ '%(a)s' % {'b': 1} }}", "no key \"a\""),
        ("{{ [1] % 2 }}", "unsupported operand types for %"),
        ("{{ 5 % 0 }}", "division by zero"),
        ("{{ '{!r}'.format('a') }}", "found '!'"),
        ("{{ 'a'.encode() }}", "no method named encode"),
        (
            "{{ 'a'.translate({97: 'x'}) }}",
            "no method named translate",
        ),
        (
            "{{ '{a}'.format_map({'a': 1}) }}",
            "no method named format_map",
        ),
        ("{{ [1].append(2) }}", "no method named append"),
        ("{{ {'a': 1}.update({'b': 2}) }}", "no method named update"),
        (
            "{{ ('%s'|e).format('<') }}",
            "format: not supported for escaped text",
        ),
        (r"{{ '\N{BULLET}' }}", "characters have no names here"),
        ("{{ +5 }}", "unexpected `+`"),
        ("{{ 1, 2 }}", "unexpected `,`"),
        (
            "{% macro f() %}{{ varargs }}{% endmacro %}{{ f(1) }}",
            "too many arguments",
        ),
    ] {
        let template = ChatTemplate::from_source(source, Map::new());
        let rendered =
            template.and_then(|template| template.render(&[], &RenderOptions::default()));
        let error = rendered.unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
}
