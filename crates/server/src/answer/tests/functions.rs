//! Calls in Qwen3-Coder's form, `<function=name>`.

use super::*;

#[test]
fn functions_with_parameters() {
    let text = "<tool_call>\n<function=find>\n<parameter=text>\na\n<b> \"c\"\n</parameter>\n<parameter=num>\n5\n</parameter>\n\
        <parameter=deep>True</parameter><parameter=tags>[\"x\", {\"y\": 1}]</parameter>\n</function>\n</tool_call>";
    let expected =
        r#"find{"text": "a\n<b> \"c\"", "num": 5, "deep": true, "tags": ["x",{"y":1}]}."#;
    check(text, expected);
    check(
        &format!("Well.\n{text}\n{text}"),
        &format!("'Well.'{}", expected.repeat(2)),
    );
    let bare = text
        .trim_start_matches("<tool_call>\n")
        .trim_end_matches("\n</tool_call>");
    check(bare, expected);
    check("<tool_call><function=now></function></tool_call>", "now{}.");
    check("<tool_call><function=\"now\"> </tool_call>", "now{}.");
    for (parameter, value, json) in [
        ("num", "five", "\"five\""),
        ("num", "null", "null"),
        ("text", "null", "\"null\""),
        ("maybe", "None", "null"),
        ("maybe", "12", "\"12\""),
        ("ratio", "2.50", "2.5"),
        ("ratio", "7", "7"),
        ("deep", "no", "\"no\""),
        ("near", "null", "null"),
        ("near", "{\"a\": 1}", "{\"a\":1}"),
        ("near", "{'a': 1}", "\"{'a': 1}\""),
        ("size", " 3 ", "3"),
        ("kind", "2", "2"),
        ("unknown", "4", "\"4\""),
        ("text", "", "\"\""),
        (
            "text",
            "</parameter> <parameter>",
            "\"</parameter> <parameter>\"",
        ),
        ("text", "see </function> there", "\"see </function> there\""),
    ] {
        let text = format!(
            "<tool_call><function=find><parameter={parameter}>{value}</parameter></function></tool_call>"
        );
        check(&text, &format!("find{{\"{parameter}\": {json}}}."));
    }
}

#[test]
fn functions_that_are_cut_off() {
    let begin = "<tool_call><function=find><parameter=num>1</parameter><parameter=text>";
    check(
        &format!("{begin}a\"b"),
        "find{\"num\": 1, \"text\": \"a\\\"b.",
    );
    check(
        &format!("{begin}a</function>\n</tool_call>"),
        "find{\"num\": 1, \"text\": \"a\"}.",
    );
    check(
        "<tool_call><function=find> odd <parameter=num>1</parameter>\n</function>",
        "find{\"num\": 1}.'odd'",
    );
}
