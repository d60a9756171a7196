//! Text with names in double braces, `{{ name }}`, that stand for something.

/// A text, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(&'static str),
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A name that there is not.
    #[error("`{0}` stands for nothing")]
    Unknown(String),
    /// A name without an end.
    #[error("a `{{{{` in this template is not closed")]
    Unclosed,
}

impl Template {
    /// Reads a text in which these names may stand.
    ///
    /// # Errors
    /// When another stands there, or one has no end.
    pub fn new(text: &str, names: &[&'static str]) -> Result<Self, TemplateError> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or(TemplateError::Unclosed)?;
            let known = names.iter().find(|known| **known == name.trim());
            let known = known.ok_or_else(|| TemplateError::Unknown(name.trim().to_owned()))?;
            pieces.extend([Piece::Text(before.to_owned()), Piece::Name(known)]);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The names in it, in their order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Name(name) => Some(*name),
            Piece::Text(_) => None,
        })
    }

    /// What stands before the first name.
    pub fn beginning(&self) -> &str {
        match self.0.first() {
            Some(Piece::Text(text)) => text,
            _ => "",
        }
    }

    /// The text with what `value` says in the place of each name.
    pub fn render<V: AsRef<str>>(&self, value: impl Fn(&str) -> V) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Name(name) => text.push_str(value(name).as_ref()),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_way_to_what_they_stand_for() {
        let template =
            Template::new("<{{message}}> of {{ service }}{{ step }}!", &["service", "message", "step"]);
        let template = template.unwrap();
        assert_eq!(template.render(str::to_uppercase), "<MESSAGE> of SERVICESTEP!");
        assert_eq!(template.names().collect::<Vec<_>>(), ["message", "service", "step"]);
        assert_eq!(template.beginning(), "<");
        assert_eq!(Template::new("", &[]).unwrap().render(str::to_owned), "");
    }

    #[test]
    fn what_stands_for_nothing_is_refused() {
        let fault = |text| Template::new(text, &["message"]).unwrap_err();
        assert_eq!(fault("{{ text }}"), TemplateError::Unknown("text".to_owned()));
        assert_eq!(fault("{{ message }"), TemplateError::Unclosed);
        assert_eq!(fault("a }} {{"), TemplateError::Unclosed);
    }
}
