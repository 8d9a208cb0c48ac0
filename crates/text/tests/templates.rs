//! What a hostile chat template may not do, and the parts of Jinja that templates rely on.

use std::time::{Duration, Instant};

use fonio_text::{ChatTemplate, Error, Message};
use serde_json::{Map, Value, json};

fn render(source: &str) -> Result<String, Error> {
    let messages = [Message::new("user", "Hi"), Message::new("assistant", "Ho")];
    ChatTemplate::new(source)?.render(&messages, true, "<s>", "</s>", &Map::new())
}

/// A refused template: the error, and that it came soon.
fn refused(source: &str) -> String {
    let start = Instant::now();
    let result = render(source);
    let shown: String = source.chars().take(80).collect();
    assert!(start.elapsed() < Duration::from_secs(10), "{shown} took {:?}", start.elapsed());
    match result {
        Ok(text) => panic!("{shown} made {} bytes", text.len()),
        Err(error @ (Error::Template(_) | Error::Limit { .. })) => error.to_string(),
        Err(error) => panic!("{shown}: {error}"),
    }
}

#[test]
fn chatml() {
    let text =
        ChatTemplate::chatml().render(&[Message::new("user", "Hi")], true, "", "", &Map::new()).unwrap();
    assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    assert!(ChatTemplate::new(ChatTemplate::chatml().source()).is_ok());
}

#[test]
fn what_templates_rely_on() {
    let cases = [
        ("{{ bos_token ~ messages[0]['role'] ~ eos_token }}", "<s>user</s>"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
            "Ho",
        ),
        (
            "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}",
            "3",
        ),
        ("{{ messages[-1]['content'].strip().upper().replace('O', '0') }}", "H0"),
        ("{{ messages[1:] | length }}{{ messages | map(attribute='role') | join(',') }}", "1user,assistant"),
        (
            "{{ true }} {{ none }} {{ 1.0 }} {{ ['a', 1, {'b': None}] }}",
            "True None 1.0 ['a', 1, {'b': None}]",
        ),
        ("{{ {'b': [1, 'é\"'], 'a': true} | tojson }}", r#"{"b": [1, "é\""], "a": true}"#),
        ("{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": [],\n  \"b\": 1\n}"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{% generation %}a{%- endgeneration %}b", "ab"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') + m('b') }}", "[a][b]"),
        ("{{ 'a' * 3 }}{{ [1] * 2 }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ 7 % 4 }}", "aaa[1, 1]383"),
        ("{{ missing is defined }}{{ missing | length }}{{ missing }}", "False0"),
        ("{{ 'a,b'.split(',')[1] }}{{ 'x' in 'xy' }}{{ '%s-%d' | format('a', 3) }}", "bTruea-3"),
    ];
    for (source, want) in cases {
        assert_eq!(render(source).unwrap(), want, "{source}");
    }
    let date = render("{{ strftime_now('%Y') }}").unwrap();
    assert!(date.parse::<u32>().unwrap() >= 2024, "{date}");
    assert!(refused("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
}

/// Messages and variables are data: nothing in them is ever evaluated or escaped.
#[test]
fn injected_text_is_inert() {
    let template = ChatTemplate::new("{{ messages[0]['content'] }}|{{ tools }}").unwrap();
    for attack in [
        "{{ 7*7 }}",
        "{% for x in range(10) %}x{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{% raw %}{{ x }}{% endraw %}",
        "{# comment #}",
        "{{ messages }}",
        "%}{{ bos_token",
        "<script>&\"'</script>",
        "${7*7} #{7*7} <%= 7*7 %>",
    ] {
        let extra: Map<String, Value> = json!({"tools": attack}).as_object().unwrap().clone();
        let text = template.render(&[Message::new("user", attack)], false, "", "", &extra).unwrap();
        assert_eq!(text, format!("{attack}|{attack}"));
    }
}

/// The ways out of Python's sandbox, and of this engine, lead nowhere.
#[test]
fn nothing_to_escape_to() {
    for source in [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__['os'].popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ namespace.__init__.__globals__ }}{{ lipsum() }}",
        "{{ messages[0].__class__.__base__ }}{{ raise_exception.__globals__['os'] }}",
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{{ debug() }}",
        "{{ open('/etc/passwd') }}",
        "{{ get_flashed_messages() }}",
        "{{ messages | urlencode | pprint }}",
    ] {
        refused(source);
    }
    // An attribute that is not there is undefined: it prints as nothing.
    assert_eq!(render("{{ messages.__class__ }}{{ ''.__class__ }}").unwrap(), "");
}

#[test]
fn bombs_are_refused() {
    let nested = |open: &str, close: &str| open.repeat(4000) + "x" + &close.repeat(4000);
    let sources = [
        "{% for i in range(1000000000) %}x{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{{ 'a' * 1000000000 }}".to_owned(),
        "{{ 'a' * 99999999 ~ 'a' * 99999999 }}".to_owned(),
        "{{ 'a' * 100 * 100 * 100 * 100 }}".to_owned(),
        "{% set n = 99999999 %}{% for i in range(100) %}{{ 'abcdefgh' * n }}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}"
            .to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}"
            .to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}{% endfor %}"
            .to_owned(),
        "{% set ns = namespace(x='\n') %}{% for i in range(64) %}{% set ns.x = ns.x | indent(999) | indent(999, blank=true) %}{% endfor %}".to_owned()
            + "{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [range(99999) | list] %}{% endfor %}"
            .to_owned(),
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}".to_owned(),
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{{ '{:999999999}'.format(1) }}".to_owned(),
        "{{ '%999999999d' | format(1) }}".to_owned(),
        "{{ 'x' | indent(999999999) }}".to_owned(),
        nested("{% if true %}", "{% endif %}"),
        nested("{% for x in messages %}", "{% endfor %}"),
        format!("{{{{ {} }}}}", nested("(", ")")),
        format!("{{{{ {} }}}}", nested("[", "]")),
        format!("{{{{ {}x }}}}", "not ".repeat(20_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(50_000)),
        "x".repeat(1 << 20),
        "{{".to_owned(),
        "{% if %}".to_owned(),
        "{{ 1 | nosuchfilter }}".to_owned(),
    ];
    for source in sources {
        refused(&source);
    }
}

/// Values nested as deep as fuel allows are built, kept and dropped without harm.
#[test]
fn deep_values() {
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(15000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    assert_eq!(render(&format!("{deep}{{{{ ns.x | length }}}}")).unwrap(), "1");
    refused(&format!("{deep}{{{{ ns.x }}}}"));
    refused(&format!("{deep}{{{{ ns.x | tojson }}}}"));
    let _ = render(&format!("{deep}{{{{ ns.x == [ns.x] }}}}"));
}

/// Sources at the edge: whether they render or are refused, they end soon.
#[test]
fn long_sources_end() {
    for source in [
        format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(8000)),
        format!("{{{{ x{} }}}}", "|trim".repeat(2000)),
        format!("{{{{ x{} }}}}", "+1".repeat(2000)),
        format!("{{{{ {}x }}}}", "not ".repeat(4000)),
        format!("{{{{ {}1 }}}}", "-".repeat(4000)),
        format!("{{{{ x{} }}}}", "[0]".repeat(1300)),
        format!("{{{{ [{}] }}}}", "[],".repeat(1300)),
        "{{ x }}".repeat(18_000),
        "{% set x = 1 %}".repeat(8000),
        "{% macro a() %}{% endmacro %}".repeat(4000),
    ] {
        let start = Instant::now();
        let result = render(&source);
        assert!(matches!(result, Ok(_) | Err(Error::Template(_) | Error::Limit { .. })), "{result:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?} {:?}", &source[..20], start.elapsed());
    }
}

/// A long conversation is no bomb.
#[test]
fn long_conversations_render() {
    let messages: Vec<Message> =
        (0..5000).map(|i| Message::new("user", format!("message {i}\n").repeat(20))).collect();
    let template = ChatTemplate::chatml();
    let text = template.render(&messages, true, "", "", &Map::new()).unwrap();
    assert!(text.len() > 1_000_000);
}
