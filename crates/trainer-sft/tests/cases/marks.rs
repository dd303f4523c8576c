//! Marks of turns and records, and data of other methods.

use super::*;

#[test]
fn marks_of_all_trainers_are_obeyed() {
    for mark in [
        "weight",
        "loss_weight",
        "loss",
        "loss_scale",
        "train",
        "training",
        "trainable",
    ] {
        for (zero, one) in [
            (json!(0), json!(1)),
            (json!(false), json!(true)),
            (json!(0.0), json!(1.0)),
        ] {
            let mut openai = messages(&[
                ("user", "2+2?"),
                ("assistant", "WRONG"),
                ("user", "Sure?"),
                ("assistant", "Right"),
            ]);
            let mut share = sharegpt(&[
                ("human", "2+2?"),
                ("gpt", "WRONG"),
                ("human", "Sure?"),
                ("gpt", "Right"),
            ]);
            for (record, key) in [(&mut openai, "messages"), (&mut share, "conversations")] {
                record[key][0][mark] = zero.clone();
                record[key][1][mark] = zero.clone();
                record[key][3][mark] = one.clone();
            }
            assert_eq!(
                learnt(&preview(&[openai, share], &[])),
                ["Right<|im_end|>"; 2],
                "{mark}"
            );
        }
    }
}

#[test]
fn marks_that_cannot_be_obeyed_are_refused_by_name() {
    let answer = |mark: &str, value: Value| {
        let mut record = messages(&[("user", "a"), ("assistant", "b")]);
        record["messages"][1][mark] = value;
        record
    };
    let mut user = messages(&[("user", "a"), ("assistant", "b")]);
    user["messages"][0]["train"] = true.into();
    for (record, expected) in [
        (
            answer("weight", json!(0.5)),
            "field `messages[1].weight`: expected 0 or 1, found the number 0.5",
        ),
        (
            answer("loss_weight", json!("high")),
            "field `messages[1].loss_weight`: expected 0 or 1",
        ),
        (
            answer("train_detail", json!([{"begin_offset": 0}])),
            "field `messages[1].train_detail`: expected no mark but",
        ),
        (answer("mask", json!(true)), "field `messages[1].mask`"),
        (
            answer("sample_weight", json!(1)),
            "field `messages[1].sample_weight`: expected no mark but weight, loss_weight, loss, loss_scale, train, training, trainable, 0 or 1",
        ),
        (
            user,
            "field `messages[0].train`: expected 0: only what the assistant says is learnt",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &[]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
    }
    let neutral = answer("train_detail", json!([]));
    assert_eq!(learnt(&preview(&[neutral], &[])), ["b<|im_end|>"]);
}

#[test]
fn data_of_other_methods_is_named() {
    let chat = messages(&[("user", "a"), ("assistant", "b")]);
    let with = |key: &str, value: Value| {
        let mut record = chat.clone();
        record[key] = value;
        record
    };
    for (record, expected) in [
        (
            json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
            "preference data (DPO, ORPO), recognised by `rejected`",
        ),
        (
            json!({"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}),
            "recognised by `rejected`",
        ),
        (
            with("rejected_response", json!("c")),
            "recognised by `rejected_response`",
        ),
        (
            json!({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": [{"role": "assistant"}]}),
            "`non_preferred_output`",
        ),
        (
            json!({"prompt": "a", "completion": "b", "preferred_output": "c"}),
            "preference data (DPO, ORPO), recognised by `preferred_output`",
        ),
        (
            json!({"prompt": "a", "completion": "b", "label": false}),
            "(KTO), recognised by `label`",
        ),
        (with("label", json!(true)), "(KTO), recognised by `label`"),
        (
            with("kto_tag", json!(true)),
            "(KTO), recognised by `kto_tag`",
        ),
        (
            json!({"prompt": "a", "completions": ["b"], "labels": [true]}),
            "stepwise data of a reward model",
        ),
        (
            json!({"input_ids": [1, 2], "labels": [1, 2]}),
            "tokenized data, recognised by `input_ids`",
        ),
        (
            with("images", json!(["a.png"])),
            "pictures or sounds in `images`",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &[]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
    }
    // What is empty asks for nothing.
    let neutral =
        json!({"messages": chat["messages"], "images": [], "rejected": "", "label": null});
    assert_eq!(learnt(&preview(&[neutral], &[])), ["b<|im_end|>"]);
}
