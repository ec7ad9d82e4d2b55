package manifest

import (
	"encoding/json"
	"reflect"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// strict reads value into the struct that into points to and returns every unknown
// field and every value of a wrong type, each with its exact path: encoding/json
// stops at the first and leaves indexes out. Field names are compared by case, as
// the API server does. Values are never printed: they may be secret.
func strict(value map[string]any, into any, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	check(value, reflect.TypeOf(into).Elem(), path, &errs)
	if len(errs) > 0 {
		return errs
	}
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return field.ErrorList{wrong(path, "cannot be read: "+err.Error())}
	}
	return nil
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func check(value any, t reflect.Type, path *field.Path, errs *field.ErrorList) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if value == nil {
		return // null is absent
	}
	if reflect.PointerTo(t).Implements(unmarshaler) || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		checkLeaf(value, t, path, errs)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if m, ok := value.(map[string]any); ok {
			checkStruct(m, t, path, errs)
			return
		}
	case reflect.Map:
		if m, ok := value.(map[string]any); ok {
			for key, v := range m {
				check(v, t.Elem(), path.Key(key), errs)
			}
			return
		}
	case reflect.Slice:
		if l, ok := value.([]any); ok {
			for i, v := range l {
				check(v, t.Elem(), path.Index(i), errs)
			}
			return
		}
	default:
		checkLeaf(value, t, path, errs)
		return
	}
	*errs = append(*errs, wrong(path, "must be "+typeName(t)+", is "+valueName(value)))
}

func checkStruct(value map[string]any, t reflect.Type, path *field.Path, errs *field.ErrorList) {
	known, ok := fieldsOf.Load(t)
	if !ok {
		fields := map[string]reflect.Type{}
		jsonFields(t, fields)
		known, _ = fieldsOf.LoadOrStore(t, fields)
	}
	for name, v := range value {
		if ft, ok := known.(map[string]reflect.Type)[name]; ok {
			check(v, ft, path.Child(name), errs)
		} else {
			*errs = append(*errs, unknownField(path.Child(name).String()))
		}
	}
}

// fieldsOf keeps jsonFields per struct type: reflect.Type → map[string]reflect.Type.
var fieldsOf sync.Map

func jsonFields(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name != "":
			into[name] = f.Type
		case f.Anonymous:
			jsonFields(f.Type, into)
		}
	}
}

func checkLeaf(value any, t reflect.Type, path *field.Path, errs *field.ErrorList) {
	if reflect.TypeOf(value).Kind() == t.Kind() && t.Kind() != reflect.Slice {
		return // a string for a string: most of all leaves
	}
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, reflect.New(t).Interface())
	}
	if err == nil {
		return
	}
	message := "must be " + typeName(t) + ", is " + valueName(value)
	if _, isString := value.(string); isString && t.Kind() == reflect.Slice {
		message = "is not base64: encode it (base64 -w0), or write it under stringData as it is"
	}
	*errs = append(*errs, wrong(path, message))
}

func wrong(path *field.Path, message string) *field.Error {
	return fault(path.String(), message)
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct:
		if reflect.PointerTo(t).Implements(unmarshaler) {
			return "a " + t.Name()
		}
		return "an object"
	case reflect.Map:
		return "an object"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "a base64 string"
		}
		return "a list"
	case reflect.String:
		return "a string (quote it)"
	case reflect.Bool:
		return "true or false"
	case reflect.Int32:
		return "a 32-bit integer"
	default:
		return "a number"
	}
}

func valueName(value any) string {
	switch value.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	case string:
		return "a string"
	case bool:
		return "a bool"
	default:
		return "a number"
	}
}
